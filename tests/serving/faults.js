// Return what is wrong on the page for somebody who cannot see well, a line each (a function body; no browser has it).
const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const found = [];

function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
}

const over = ([r, g, b, a], below) => [r, g, b].map((value, place) => value * a + below[place] * (1 - a));

function backgroundOf(node) {
  const own = rgba(getComputedStyle(node).backgroundColor);
  if (own[3] === 1) return own.slice(0, 3);
  return over(own, node.parentElement ? backgroundOf(node.parentElement) : [1, 1, 1]);
}

function luminance(colour) {
  const [r, g, b] = colour.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

const isSeen = (node) =>
  node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !node.closest(".hidden, .skip");
const told = (node) => `${node.tagName.toLowerCase()}#${node.id}.${node.className} ${node.textContent.slice(0, 30)}`;

for (const node of document.querySelectorAll("body *")) {
  const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!hasText || !isSeen(node) || node.tagName === "OPTION") continue;
  const background = backgroundOf(node);
  const ratio = contrast(over(rgba(getComputedStyle(node).color), background), background);
  const size = parseFloat(getComputedStyle(node).fontSize);
  if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${told(node)}`);
  if (size < 9.5) found.push(`size ${size}: ${told(node)}`);
}

for (const node of document.querySelectorAll("button, a, input, select, textarea, summary, [role=region]")) {
  if (!node.checkVisibility()) continue;
  const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
  const name = node.getAttribute("aria-label") ?? (labels || node.textContent);
  if (!name.trim()) found.push(`no name: ${told(node)}`);
  const { width, height } = node.getBoundingClientRect();
  const isSmall = Math.min(width, height) < 24 && !node.closest(".check, .skip") && node.type !== "range";
  if (isSmall && node.type !== "file") found.push(`small ${width} x ${height}: ${told(node)}`);
}

const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
for (const id of ids.filter((each, place) => ids.indexOf(each) !== place)) found.push(`twice: ${id}`);

for (const name of ["aria-describedby", "aria-labelledby", "for"]) {
  for (const node of document.querySelectorAll(`[${name}]`)) {
    for (const id of node.getAttribute(name).split(" ")) {
      if (!document.getElementById(id)) found.push(`${name} ${id} is nothing: ${told(node)}`);
    }
  }
}

const levels = [...document.querySelectorAll("h1, h2, h3")].filter(isSeen).map((node) => Number(node.tagName[1]));
levels.forEach((level, place) => {
  if (place ? level > levels[place - 1] + 1 : level !== 1) found.push(`heading of level ${level} at ${place}`);
});
return found;
