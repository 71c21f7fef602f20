// Kept tokens in full light over dimmed frames, and a bar for each frame's share of the budget.

const KEPT = "#ffb000";
const WIDTH = 384; // pixels of a canvas; the page scales it

export async function drawFrames(parent, compression) {
  const images = await Promise.all(compression.frames.map(load));
  const { frames: steps, rows, columns } = compression.grid;
  const kept = new Set(compression.kept);
  const fullest = Math.max(1, ...compression.frame_budgets);
  const figures = [];
  for (let step = 0; step < steps; step++) {
    const source = Math.floor(step * compression.frames_per_step);
    const cells = [];
    for (let cell = 0; cell < rows * columns; cell++) cells.push(kept.has(step * rows * columns + cell));
    const figure = document.createElement("figure");
    figure.append(
      drawn(images[source], cells, rows, columns),
      caption(compression.timestamps[source], compression.frame_budgets[step], rows * columns),
      bar(compression.frame_budgets[step] / fullest),
    );
    figures.push(figure);
  }
  parent.replaceChildren(...figures);
}

function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a frame cannot be shown"));
    image.src = url;
  });
}

function drawn(image, cells, rows, columns) {
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = Math.round((WIDTH * image.height) / image.width);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = image.width * 2 > WIDTH;
  pen.filter = "grayscale(0.6) brightness(0.55)";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  const width = canvas.width / columns;
  const height = canvas.height / rows;
  const area = new Path2D();
  cells.forEach((kept, cell) => {
    if (kept) area.rect((cell % columns) * width, Math.floor(cell / columns) * height, width, height);
  });
  pen.save();
  pen.clip(area);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.restore();
  outline(pen, cells, rows, columns, width, height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${cells.filter(Boolean).length} of ${cells.length} tokens kept`);
  return canvas;
}

// The border of the kept area, not of every token in it.
function outline(pen, cells, rows, columns, width, height) {
  const at = (row, column) => row >= 0 && row < rows && column >= 0 && column < columns && cells[row * columns + column];
  pen.strokeStyle = KEPT;
  pen.lineWidth = Math.max(1.5, Math.min(4, width / 12));
  pen.beginPath();
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      if (!at(row, column)) continue;
      const [left, top, right, bottom] = [column * width, row * height, (column + 1) * width, (row + 1) * height];
      if (!at(row - 1, column)) line(pen, left, top, right, top);
      if (!at(row + 1, column)) line(pen, left, bottom, right, bottom);
      if (!at(row, column - 1)) line(pen, left, top, left, bottom);
      if (!at(row, column + 1)) line(pen, right, top, right, bottom);
    }
  }
  pen.stroke();
}

function line(pen, fromX, fromY, toX, toY) {
  pen.moveTo(fromX, fromY);
  pen.lineTo(toX, toY);
}

function caption(seconds, count, total) {
  const element = document.createElement("figcaption");
  const time = document.createElement("span");
  time.textContent = `${seconds.toFixed(2)} s`;
  const kept = document.createElement("span");
  kept.textContent = `${count} of ${total}`;
  element.append(time, kept);
  return element;
}

function bar(share) {
  const outer = document.createElement("div");
  outer.className = "bar";
  const inner = document.createElement("div");
  inner.style.width = `${Math.round(100 * share)}%`;
  outer.append(inner);
  return outer;
}
