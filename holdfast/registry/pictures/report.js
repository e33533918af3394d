"use strict";
// Draws the figures of the page, and draws them anew when the reader changes between light and dark.
{
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  const exchange = JSON.parse(document.getElementById("colours").textContent);
  const draw = () => {
    for (const place of document.querySelectorAll(".plot")) {
      const light = document.getElementById(place.dataset.figure).textContent;
      const text = dark.matches ? light.replace(/#[0-9a-f]{6}/g, (colour) => exchange[colour] ?? colour) : light;
      const figure = JSON.parse(text);
      if (touch.matches) figure.layout.dragmode = false; // a finger scrolls the page, and a wide figure in its frame
      Plotly.react(place, figure.data, figure.layout, config);
    }
  };
  dark.addEventListener("change", draw);
  draw();
}
