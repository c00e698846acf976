const report = JSON.parse(document.getElementById("figures").textContent);
const hidden = new Set();
const config = { responsive: true, displayModeBar: false };
function draw(name) {
  const byMetric = report.charts[name];
  const figure = byMetric[""] || byMetric[document.getElementById("metric").value];
  const place = document.getElementById(name);
  place.hidden = !figure;
  if (!figure) return;
  const data = figure.data.map(trace => ({ ...trace, visible: !hidden.has(trace.meta) }));
  Plotly.react(place, data, structuredClone(figure.layout), config);
}
function drawAll() { Object.keys(report.charts).forEach(draw); }
document.getElementById("metric").addEventListener("change", drawAll);
document.querySelectorAll(".chip").forEach(chip => chip.addEventListener("click", () => {
  const model = chip.dataset.model, shown = hidden.has(model);
  if (shown) hidden.delete(model); else hidden.add(model);
  chip.setAttribute("aria-pressed", String(shown));
  drawAll();
}));
window.addEventListener("beforeprint", () => {
  document.querySelectorAll(".chart").forEach(place => Plotly.Plots.resize(place));
});
drawAll();
