// Returns each text that is seen and has less contrast to what is behind it than WCAG 2.2 asks for (1.4.3: 4.5, and 3 for
// large text), and each such mark of a plot (1.4.11: 3).
function parse(text) {
  const context = parse.context ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true })
  context.clearRect(0, 0, 1, 1)
  context.fillStyle = text
  context.fillRect(0, 0, 1, 1)
  const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data
  return [r, g, b, a / 255]
}
const over = (top, bottom) => [0, 1, 2].map(i => top[i] * top[3] + bottom[i] * (1 - top[3])).concat(1)
function behind(element) {
  const layers = []
  for (let one = element; one; one = one.parentElement) {
    const colour = parse(getComputedStyle(one).backgroundColor)
    if (colour[3]) layers.push(colour)
    if (colour[3] === 1) break
  }
  return layers.reverse().reduce((bottom, top) => over(top, bottom), [255, 255, 255, 1])
}
function opacity(element) {
  let found = 1
  for (let one = element; one; one = one.parentElement) found *= Number(getComputedStyle(one).opacity)
  return found
}
const linear = part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
function contrast(element, colour, ground) {
  const bottom = behind(ground ?? element), top = parse(colour)
  top[3] *= opacity(element)
  const [low, high] = [luminance(over(top, bottom)), luminance(bottom)].sort((a, b) => a - b)
  return (high + 0.05) / (low + 0.05)
}
const seen = element => element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) &&
  element.getBoundingClientRect().width > 1
const poor = new Set()
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement
  if (!text || !seen(element) || element.closest("title, script, style, noscript")) continue
  const style = getComputedStyle(element), size = parseFloat(style.fontSize)
  const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5
  const colour = element.closest("svg") ? style.fill : style.color
  const found = contrast(element, colour)
  const name = `${element.tagName} ${element.className.baseVal ?? element.className}`
  if (found < least - 0.005) poor.add(`${found.toFixed(2)} ${colour}: ${name} ${text.slice(0, 30)}`)
}
for (const mark of document.querySelectorAll("figure polyline, figure circle, figure g path, .key line, .key g")) {
  const style = getComputedStyle(mark), colour = style.stroke === "none" ? style.fill : style.stroke
  const found = contrast(mark, colour, mark.closest("svg"))
  if (found < 2.995) poor.add(`${found.toFixed(2)} ${colour}: ${mark.tagName} mark`)
}
return [...poor]
