// Draw the figure with plotly.js over the picture, in the colors of the page. If anything fails, the picture stays.
(() => {
  const report = document.currentScript.closest(".geofloor-report");
  const figure = report.querySelector("figure");
  const holder = figure.querySelector(".interactive");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const color = (name) => getComputedStyle(report).getPropertyValue(`--${name}`).trim();
  const faded = (name, share) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color(name).slice(at, at + 2), 16));
    return `rgba(${red}, ${green}, ${blue}, ${share})`;
  };
  const nothing = { mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
  const draw = () => {
    const traces = [];
    if (data.least) {
      traces.push({
        x: data.widths, y: data.least, name: "no student gets here", fill: "tozeroy", ...nothing,
        fillcolor: faded("faint", 0.35), hoverinfo: "x+y", hovertemplate: "impossible below %{y:.3f}<extra></extra>",
      });
    }
    if (data.losses) {
      traces.push(
        { x: data.widths, y: data.low, showlegend: false, ...nothing },
        { x: data.widths, y: data.high, name: data.interval, fill: "tonexty", ...nothing, fillcolor: faded("curve", 0.2) },
        {
          x: data.widths, y: data.losses, name: "forecast", mode: "lines", line: { color: color("curve"), width: 2.5 },
          customdata: data.low.map((low, at) => [low, data.high[at]]),
          hovertemplate: "forecast %{y:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})<extra></extra>",
        },
      );
    }
    if (data.runs.length) {
      traces.push({
        x: data.runs.map((run) => run[0]), y: data.runs.map((run) => run[1]), name: "distilled", mode: "markers",
        marker: { color: color("ink"), size: 9 }, hovertemplate: "distilled: %{y:.3f}<extra></extra>",
      });
    }
    if (data.target !== null) {
      traces.push({
        x: [data.widths[0], data.widths[data.widths.length - 1]], y: [data.target, data.target],
        name: `target, ${data.target}`, mode: "lines", line: { color: color("faint"), dash: "dot", width: 2 },
        hoverinfo: "skip",
      });
    }
    const axis = { color: color("ink"), gridcolor: color("rule"), linecolor: color("ink"), zeroline: false };
    return Plotly.react(
      holder,
      traces,
      {
        dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false, // a finger scrolls the page
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified",
        font: { family: getComputedStyle(report).fontFamily, color: color("ink"), size: 13 },
        hoverlabel: { bgcolor: color("panel"), bordercolor: color("rule"), font: { color: color("ink") } },
        margin: { l: 56, r: 12, t: 8, b: 48 },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        xaxis: { ...axis, title: { text: data.x }, hoverformat: "d", unifiedhovertitle: { text: "width %{x}" }, showgrid: false },
        yaxis: { ...axis, title: { text: data.y }, range: [0, data.top] },
      },
      { responsive: true, displayModeBar: false }, // one of its buttons sends the data to a server
    );
  };
  figure.classList.add("drawn");
  try {
    Promise.resolve(draw()).catch(() => figure.classList.remove("drawn"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  } catch {
    figure.classList.remove("drawn");
  }
})();
