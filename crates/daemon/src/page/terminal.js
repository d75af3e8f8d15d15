// A small terminal: what shells, editors and pagers use of xterm (ECMA-48, DEC private modes): cursor, erasing, colours,
// scroll regions, the other screen, titles ignored. Characters that are wider than one cell count as one.
const COLOURS = ["#3b4048", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0",
  "#6b727d", "#ff8a93", "#b5e08f", "#ffd98a", "#8ac6ff", "#e09bf0", "#7fd6e2", "#ffffff"];
const BACK = 1000;
const PLAIN = {};

// One of 256: sixteen, a cube of six, greys.
export function colour(index) {
  if (index < 16) return COLOURS[index];
  if (index > 231) { const grey = 8 + (index - 232) * 10; return `rgb(${grey},${grey},${grey})`; }
  const part = (value) => value ? 55 + value * 40 : 0;
  const cube = index - 16;
  return `rgb(${part(Math.floor(cube / 36))},${part(Math.floor(cube / 6) % 6)},${part(cube % 6)})`;
}

export class Terminal {
  constructor(send, resized) {
    this.send = send;
    this.resized = resized;
    this.node = document.createElement("div");
    this.node.className = "terminal mono";
    this.node.tabIndex = 0;
    this.decoder = new TextDecoder();
    this.rows = 24;
    this.columns = 80;
    this.modes = { wrap: true, cursor: true, application: false, paste: false };
    this.history = [];
    this.reset();
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.node.addEventListener("paste", (event) => {
      event.preventDefault();
      const text = event.clipboardData.getData("text").replace(/\r?\n/g, "\r");
      this.say(this.modes.paste ? `\x1b[200~${text}\x1b[201~` : text);
    });
    this.observer = new ResizeObserver(() => this.fit(false));
    this.observer.observe(this.node);
  }

  reset() {
    this.lines = Array.from({ length: this.rows }, () => this.blank());
    this.x = 0; this.y = 0; this.style = PLAIN; this.saved = [0, 0, PLAIN];
    this.top = 0; this.bottom = this.rows - 1;
    this.other = null; this.pending = ""; this.wrapping = false;
  }

  blank() { return []; }

  end() { this.ended = true; this.modes.cursor = false; this.observer.disconnect(); this.draw(); }

  say(text) { if (!this.ended) this.send(new TextEncoder().encode(text)); }

  // Takes the size of its element.
  fit(tell) {
    const probe = document.createElement("span");
    probe.textContent = "M".repeat(20);
    this.node.append(probe);
    const box = probe.getBoundingClientRect();
    probe.remove();
    const style = getComputedStyle(this.node);
    const inner = (size, ...pads) => size - pads.reduce((sum, pad) => sum + parseFloat(style[pad]), 0);
    const line = parseFloat(style.lineHeight) || box.height;
    const columns = Math.max(20, Math.floor(inner(this.node.clientWidth, "paddingLeft", "paddingRight") / (box.width / 20)) || 80);
    const rows = Math.max(5, Math.floor(inner(this.node.clientHeight, "paddingTop", "paddingBottom") / line) || 24);
    if (!tell && rows === this.rows && columns === this.columns) return;
    while (this.lines.length > rows && this.y < this.lines.length - 1) this.lines.pop();
    while (this.lines.length > rows) { this.keep(this.lines.shift()); this.y -= 1; }
    while (this.lines.length < rows) this.lines.push(this.blank());
    this.rows = rows; this.columns = columns;
    this.top = 0; this.bottom = rows - 1;
    this.x = Math.min(this.x, columns - 1); this.y = Math.max(0, Math.min(this.y, rows - 1));
    this.resized(rows, columns);
    this.draw();
  }

  keep(line) {
    if (this.other) return;
    this.history.push(line);
    if (this.history.length > BACK) this.history.shift();
  }

  write(data) {
    this.pending += this.decoder.decode(data, { stream: true });
    // What is not whole waits; what never gets whole is dropped.
    let at = 0;
    const text = this.pending;
    while (at < text.length) {
      const taken = this.take(text, at);
      if (!taken) break;
      at += taken;
    }
    this.pending = text.length - at > 4096 ? "" : text.slice(at);
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => { this.drawing = false; this.draw(); });
    }
  }

  // Takes one character or sequence; says how long it is, 0: it is not whole.
  take(text, at) {
    const code = text.charCodeAt(at);
    if (code !== 0x1b) {
      if (code < 32 || code === 127) { this.control(code); return 1; }
      const letter = String.fromCodePoint(text.codePointAt(at));
      this.put(letter);
      return letter.length;
    }
    const next = text[at + 1];
    if (next === undefined) return 0;
    if (next === "[") {
      const match = /^[0-?]*[ -/]*[@-~]/.exec(text.slice(at + 2, at + 258));
      if (match) { this.sequence(match[0]); return 2 + match[0].length; }
      return text.length - at > 258 ? 2 : 0;
    }
    if ("]PX^_".includes(next)) {
      const match = /\x07|\x1b\\/.exec(text.slice(at + 2));
      return match ? 2 + match.index + match[0].length : 0;
    }
    if ("()*+#% ".includes(next)) return text[at + 2] === undefined ? 0 : 3;
    if (next === "7") this.saved = [this.x, this.y, this.style];
    else if (next === "8") this.restore(this.saved);
    else if (next === "D") this.down();
    else if (next === "E") { this.x = 0; this.down(); }
    else if (next === "M") this.up();
    else if (next === "c") this.reset();
    return 2;
  }

  // Where the cursor was: the screen may have become smaller since.
  restore([x, y, style]) {
    this.x = Math.min(x, this.columns - 1);
    this.y = Math.min(y, this.rows - 1);
    this.style = style;
    this.wrapping = false;
  }

  control(code) {
    if (code === 8) { this.x = Math.max(0, this.x - 1); this.wrapping = false; }
    else if (code === 9) this.x = Math.min(this.columns - 1, (this.x >> 3) * 8 + 8);
    else if (code >= 10 && code <= 12) this.down();
    else if (code === 13) { this.x = 0; this.wrapping = false; }
  }

  put(letter) {
    if (this.wrapping) { this.x = 0; this.down(); }
    const line = this.lines[this.y];
    while (line.length < this.x) line.push([" ", PLAIN]);
    line[this.x] = [letter, this.style];
    this.wrapping = this.x === this.columns - 1 && this.modes.wrap;
    if (this.x < this.columns - 1) this.x += 1;
  }

  down() {
    this.wrapping = false;
    if (this.y === this.bottom) this.scroll(1);
    else if (this.y < this.rows - 1) this.y += 1;
  }

  up() {
    this.wrapping = false;
    if (this.y === this.top) this.scroll(-1);
    else if (this.y > 0) this.y -= 1;
  }

  scroll(count) {
    for (let left = Math.min(Math.abs(count), this.rows); left > 0; left -= 1) {
      if (count > 0) {
        const [gone] = this.lines.splice(this.top, 1);
        if (this.top === 0) this.keep(gone);
        this.lines.splice(this.bottom, 0, this.blank());
      } else {
        this.lines.splice(this.bottom, 1);
        this.lines.splice(this.top, 0, this.blank());
      }
    }
  }

  sequence(text) {
    const final = text[text.length - 1];
    const hidden = text[0] === "?";
    if (/^[<=>]/.test(text) || / /.test(text)) return;
    const numbers = text.slice(hidden ? 1 : 0, -1).split(/[;:]/).map((part) => part === "" ? undefined : Math.min(Number(part) || 0, 9999));
    const first = (missing) => numbers[0] === undefined ? missing : numbers[0];
    const count = Math.max(1, first(1));
    const line = this.lines[this.y];
    this.wrapping = false;
    if (hidden) { if (final === "h" || final === "l") numbers.forEach((mode) => this.mode(mode, final === "h")); return; }
    switch (final) {
      case "A": this.y = Math.max(this.y >= this.top ? this.top : 0, this.y - count); break;
      case "B": case "e": this.y = Math.min(this.y <= this.bottom ? this.bottom : this.rows - 1, this.y + count); break;
      case "C": case "a": this.x = Math.min(this.columns - 1, this.x + count); break;
      case "D": this.x = Math.max(0, this.x - count); break;
      case "E": this.x = 0; this.y = Math.min(this.rows - 1, this.y + count); break;
      case "F": this.x = 0; this.y = Math.max(0, this.y - count); break;
      case "G": case "`": this.x = Math.min(this.columns, count) - 1; break;
      case "d": this.y = Math.min(this.rows, count) - 1; break;
      case "H": case "f":
        this.y = Math.min(this.rows, count) - 1;
        this.x = Math.min(this.columns, Math.max(1, numbers[1] || 1)) - 1;
        break;
      case "J": {
        const how = first(0);
        if (how === 0) { line.length = Math.min(line.length, this.x); this.clear(this.y + 1, this.rows); }
        else if (how === 1) { this.fill(0, this.x + 1); this.clear(0, this.y); }
        else { this.clear(0, this.rows); if (how === 3) this.history = []; }
        break;
      }
      case "K": {
        const how = first(0);
        if (how === 0) { line.length = Math.min(line.length, this.x); this.shade(); } else this.fill(0, how === 1 ? this.x + 1 : this.columns);
        break;
      }
      case "L": case "M":
        if (this.y >= this.top && this.y <= this.bottom) {
          const top = this.top;
          this.top = this.y;
          const other = this.other;
          this.other = other || [];
          this.scroll(final === "M" ? count : -count);
          this.other = other;
          this.top = top;
        }
        break;
      case "P": line.splice(this.x, count); break;
      case "@": if (line.length > this.x) line.splice(this.x, 0, ...Array.from({ length: Math.min(count, this.columns) }, () => [" ", this.style])); line.length = Math.min(line.length, this.columns); break;
      case "X": this.fill(this.x, Math.min(this.columns, this.x + count)); break;
      case "S": this.scroll(count); break;
      case "T": this.scroll(-count); break;
      case "r": {
        const top = count - 1, bottom = Math.min(this.rows, numbers[1] || this.rows) - 1;
        if (top < bottom) { this.top = top; this.bottom = bottom; this.x = 0; this.y = 0; }
        break;
      }
      case "m": this.styled(numbers); break;
      case "n": if (first(0) === 6) this.say(`\x1b[${this.y + 1};${this.x + 1}R`); break;
      case "c": this.say("\x1b[?6c"); break;
      case "s": this.saved = [this.x, this.y, this.style]; break;
      case "u": this.restore(this.saved); break;
    }
  }

  clear(from, to) { for (let row = from; row < to; row += 1) this.lines[row] = this.blank(); }

  fill(from, to) {
    const line = this.lines[this.y];
    while (line.length < to) line.push([" ", PLAIN]);
    for (let column = from; column < to; column += 1) line[column] = [" ", this.style];
  }

  // The rest of a line takes the background.
  shade() { if (this.style.back) this.fill(this.x, this.columns); }

  mode(mode, on) {
    if (mode === 1) this.modes.application = on;
    else if (mode === 7) this.modes.wrap = on;
    else if (mode === 25) this.modes.cursor = on;
    else if (mode === 2004) this.modes.paste = on;
    else if ([47, 1047, 1049].includes(mode) && on !== Boolean(this.other)) {
      if (on) {
        this.other = [this.lines, this.x, this.y];
        this.lines = Array.from({ length: this.rows }, () => this.blank());
      } else {
        const [lines, x, y] = this.other;
        this.lines = lines;
        this.other = null;
        while (this.lines.length > this.rows) this.lines.shift();
        while (this.lines.length < this.rows) this.lines.push(this.blank());
        this.restore([x, y, this.style]);
      }
      this.top = 0; this.bottom = this.rows - 1;
    }
  }

  styled(numbers) {
    let style = { ...this.style };
    for (let at = 0; at < numbers.length; at += 1) {
      const number = numbers[at] || 0;
      if (number === 0) style = {};
      else if (number === 1) style.bold = true;
      else if (number === 2) style.dim = true;
      else if (number === 3) style.italic = true;
      else if (number === 4) style.line = true;
      else if (number === 7) style.inverse = true;
      else if (number === 22) { delete style.bold; delete style.dim; }
      else if (number === 23) delete style.italic;
      else if (number === 24) delete style.line;
      else if (number === 27) delete style.inverse;
      else if (number >= 30 && number <= 37) style.ink = colour(number - 30);
      else if (number >= 40 && number <= 47) style.back = colour(number - 40);
      else if (number >= 90 && number <= 97) style.ink = colour(number - 82);
      else if (number >= 100 && number <= 107) style.back = colour(number - 92);
      else if (number === 39) delete style.ink;
      else if (number === 49) delete style.back;
      else if (number === 38 || number === 48) {
        const key = number === 38 ? "ink" : "back";
        if (numbers[at + 1] === 5) { style[key] = colour(Math.min(255, numbers[at + 2] || 0)); at += 2; }
        else if (numbers[at + 1] === 2) {
          style[key] = `rgb(${numbers.slice(at + 2, at + 5).map((value) => Math.min(255, value || 0)).join(",")})`;
          at += 4;
        }
      }
    }
    this.style = style;
  }

  key(event) {
    const arrows = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F" };
    const keys = { Enter: "\r", Backspace: "\x7f", Tab: event.shiftKey ? "\x1b[Z" : "\t", Escape: "\x1b", Delete: "\x1b[3~",
      Insert: "\x1b[2~", PageUp: "\x1b[5~", PageDown: "\x1b[6~", F1: "\x1bOP", F2: "\x1bOQ", F3: "\x1bOR", F4: "\x1bOS" };
    let text;
    if (event.metaKey || (event.ctrlKey && event.shiftKey)) return;
    if (arrows[event.key]) text = (this.modes.application ? "\x1bO" : "\x1b[") + arrows[event.key];
    else if (keys[event.key]) text = keys[event.key];
    else if (event.ctrlKey && event.key.length === 1) {
      const code = event.key.toUpperCase().charCodeAt(0);
      // A selection is copied.
      if (code === 67 && String(getSelection())) return;
      // Pasting has an event of its own.
      if (code === 86) return;
      if (code === 32) text = "\0";
      else if (code >= 64 && code < 96) text = String.fromCharCode(code - 64);
    } else if (event.key.length === 1 || [...event.key].length === 1) text = (event.altKey ? "\x1b" : "") + event.key;
    if (text === undefined) return;
    event.preventDefault();
    this.node.scrollTop = this.node.scrollHeight;
    this.say(text);
  }

  draw() {
    const below = this.node.scrollHeight - this.node.scrollTop - this.node.clientHeight < 40;
    const shown = (this.other ? [] : this.history).concat(this.lines);
    const row = shown.length - this.rows + this.y;
    this.node.replaceChildren(...shown.map((line, index) => this.drawn(line, index === row && this.modes.cursor ? this.x : -1)));
    if (below) this.node.scrollTop = this.node.scrollHeight;
  }

  drawn(line, cursor) {
    const row = document.createElement("div");
    let text = "", style = null;
    const flush = (mark) => {
      if (!text) return;
      const span = document.createElement("span");
      span.textContent = text;
      const ink = style.inverse ? style.back || "var(--dark)" : style.ink;
      const back = style.inverse ? style.ink || "var(--pale)" : style.back;
      if (ink) span.style.color = ink;
      if (back) span.style.background = back;
      if (style.bold) span.style.fontWeight = "600";
      if (style.dim) span.style.opacity = ".65";
      if (style.italic) span.style.fontStyle = "italic";
      if (style.line) span.style.textDecoration = "underline";
      if (mark) { span.className = "cursor"; span.style.color = ""; span.style.background = ""; }
      row.append(span);
      text = "";
    };
    for (let at = 0; at < Math.max(line.length, cursor + 1); at += 1) {
      const [letter, own] = line[at] || [" ", PLAIN];
      if (at === cursor) { flush(false); text = letter; style = own; flush(true); continue; }
      if (own !== style) { flush(false); style = own; }
      text += letter;
    }
    flush(false);
    return row;
  }
}
