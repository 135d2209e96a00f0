/* Some of the theme's buttons are labels of boxes that are not shown, which a keyboard does not reach: those that open
   search and navigation on a narrow screen, and the sections in the latter. */
const names = { __drawer: "Navigation", __search: "Search" }
const narrow = matchMedia("(max-width: 76.1875em)")
for (const label of document.querySelectorAll("label.md-header__button, label.md-nav__link, label.md-nav__title")) {
  if (label.htmlFor.startsWith("__palette")) continue // of radio buttons, which the keyboard reaches
  const reach = () => label.tabIndex = narrow.matches ? 0 : -1
  reach()
  narrow.addEventListener("change", reach)
  label.setAttribute("role", "button")
  if (label.matches(".md-header__button")) label.setAttribute("aria-label", names[label.htmlFor])
  label.addEventListener("keydown", event => {
    if (event.target !== label || (event.key !== "Enter" && event.key !== " ")) return
    event.preventDefault()
    event.stopPropagation()
    label.click()
  })
}
