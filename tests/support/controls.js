// Returns what can be used, and gives each a number: a group of radio buttons counts as one, and a label as what it is of if
// that is shown.
const shown = one => one.checkVisibility({ visibilityProperty: true, opacityProperty: true })
const used = label => shown(label) && label.offsetWidth > 1 && getComputedStyle(label).cursor === "pointer" &&
  getComputedStyle(label).pointerEvents !== "none"
const controls = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, label[for], [tabindex]")]
  .filter(one => one.matches("label")
    ? used(one) && !one.control?.checkVisibility({ visibilityProperty: true })
    : one.matches("[type=radio]") ? one.checked && one.checkVisibility() : shown(one))
  .filter(one => !one.disabled && (one.tabIndex >= 0 || one.matches("a, button, input, label")))
controls.forEach((one, number) => one.dataset.number = number)
return controls.map(one => one.outerHTML.replace(/\s+/g, " ").slice(0, 120))
