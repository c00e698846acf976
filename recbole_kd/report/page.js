const report = JSON.parse(document.getElementById("figures").textContent);
const hidden = new Set();
const config = { responsive: true, displayModeBar: false };
const darkness = window.matchMedia("(prefers-color-scheme: dark)");
// Paper, ink, grid and the models' colours that a dark page needs lighter.
const onDark = {
  "white": "#181b21", "#222222": "#d5dae2", "#E4E7EB": "#2c323c", "#98A2B3": "#667085", "#667085": "#98a2b3",
  "#332288": "#9183e8", "#882255": "#d0679d",
};
const colors = new RegExp(`"(${Object.keys(onDark).join("|")})"`, "g");
let printing = false;
function themed(figure) {
  const text = JSON.stringify(figure);
  const dark = darkness.matches && !printing;
  return JSON.parse(dark ? text.replace(colors, (whole, color) => `"${onDark[color]}"`) : text);
}
// Where a name stands on a telephone, if it has room there.
function named(trace) {
  if (trace.mode !== "markers+text") return {};
  const side = trace.customdata[0];
  return side ? { textposition: side } : { mode: "markers" };
}
function draw(name) {
  const byMetric = report.charts[name];
  const found = byMetric[""] || byMetric[document.getElementById("metric").value];
  const place = document.getElementById(name);
  place.hidden = !found;
  if (!found) return;
  const figure = themed(found);
  const narrow = place.clientWidth < 480;
  const data = figure.data.map(trace => ({ ...trace, ...(narrow && named(trace)), visible: !hidden.has(trace.meta) }));
  Plotly.react(place, data, figure.layout, config);
}
function drawAll() { Object.keys(report.charts).forEach(draw); }
document.getElementById("metric").addEventListener("change", drawAll);
document.querySelectorAll(".chip").forEach(chip => chip.addEventListener("click", () => {
  const model = chip.dataset.model, shown = hidden.has(model);
  if (shown) hidden.delete(model); else hidden.add(model);
  chip.setAttribute("aria-pressed", String(shown));
  drawAll();
}));
darkness.addEventListener("change", drawAll);
window.addEventListener("beforeprint", () => {
  printing = true;
  drawAll();
  document.querySelectorAll(".chart").forEach(place => Plotly.Plots.resize(place));
});
window.addEventListener("afterprint", () => { printing = false; drawAll(); });
drawAll();
