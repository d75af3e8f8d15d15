// A line plot of the last minutes, drawn as SVG.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 400, HEIGHT = 140, LEFT = 6, TOP = 16, POINTS = 120;
const CLASSES = ["one", "two"];

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

// The next round number: 1, 2 or 5 times a power of ten.
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

export class Plot {
  constructor(title, names, say) {
    this.names = names;
    this.say = say;
    this.series = names.map(() => []);
    this.now = document.createElement("b");
    const caption = document.createElement("figcaption");
    const what = document.createElement("span");
    what.textContent = title;
    caption.append(what, this.now);
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.node = document.createElement("figure");
    this.node.append(caption, this.svg);
    this.draw();
  }

  add(values) {
    values.forEach((value, index) => {
      this.series[index].push(value);
      if (this.series[index].length > POINTS) this.series[index].shift();
    });
    this.now.textContent = values.map((value, index) => `${this.names[index]} ${this.say(value)}`.trim()).join(", ");
    this.draw();
  }

  draw() {
    const top = ceiling(Math.max(...this.series.flat(), 0));
    const x = (index) => LEFT + (index / (POINTS - 1)) * (WIDTH - LEFT);
    const y = (value) => HEIGHT - 2 - (value / top) * (HEIGHT - TOP - 2);
    const nodes = [0, 0.5, 1].map((part) => shape("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(top * part), y2: y(top * part) }));
    nodes.push(shape("text", { x: LEFT, y: TOP - 4 }, this.say(top)));
    this.series.forEach((values, index) => {
      const offset = POINTS - values.length;
      const path = values.map((value, at) => `${at ? "L" : "M"}${x(offset + at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      if (path) nodes.push(shape("path", { class: CLASSES[index], d: path }));
    });
    this.svg.replaceChildren(...nodes);
  }
}
