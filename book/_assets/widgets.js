// What the widgets' scripts leave out: the names of sliders and pictures, for those who hear the page.
let named = 0;
const part = (slider, name) => slider.querySelector(name);

function nameWidgets() {
  for (const slider of document.querySelectorAll(".hcnn-explore .widget-hslider:not([data-named])")) {
    const [label, handle, readout] = [".widget-label", ".noUi-handle", ".widget-readout"].map((name) => part(slider, name));
    if (!label || !handle || !readout) continue;
    slider.dataset.named = ++named;
    label.id = `slider-${named}`;
    label.removeAttribute("title");
    handle.setAttribute("aria-labelledby", label.id);
    readout.setAttribute("aria-live", "polite");
    readout.contentEditable = "false";
  }
  for (const picture of document.querySelectorAll(".hcnn-explore img:not([alt])")) {
    const sliders = [...picture.closest(".hcnn-explore").querySelectorAll(".widget-hslider")];
    picture.alt = sliders.map((slider) => `${part(slider, ".widget-label").textContent}: ${part(slider, ".widget-readout").textContent}`).join(", ");
  }
}
window.addEventListener("DOMContentLoaded", () => {
  new MutationObserver(nameWidgets).observe(document.body, { childList: true, subtree: true });
});
