/** Draws a run's events over time as bars, and the times without a server in red. */

/** @type {any} */ let shown = null;
let drawing = false;

/**
 * Draw with the next frame, and on while the run is live.
 * @param {HTMLCanvasElement} canvas
 * @param {{times: number[], outages: number[][], outage: {since: number} | null, live: boolean} | null} turn
 */
export function drawStrip(canvas, turn) {
  shown = turn;
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw(canvas, shown);
    if (shown?.live) setTimeout(() => drawStrip(canvas, shown), 50);
  });
}

function draw(canvas, turn) {
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const paint = canvas.getContext("2d");
  paint.scale(devicePixelRatio, devicePixelRatio);
  if (!turn?.times.length) return;
  const first = turn.times[0];
  const last = turn.live ? performance.now() : turn.times[turn.times.length - 1];
  const x = (time) => ((time - first) / Math.max(last - first, 1000)) * (width - 4) + 2;
  const colours = getComputedStyle(document.body);
  paint.fillStyle = colours.getPropertyValue("--strip-red");
  const open = turn.outage ? [[turn.outage.since, last]] : [];
  for (const [from, to] of [...turn.outages, ...open]) {
    paint.fillRect(x(from), 0, Math.max(2, x(to) - x(from)), height);
  }
  const bars = new Map();
  for (const time of turn.times) {
    const bar = Math.floor(x(time) / 4);
    bars.set(bar, (bars.get(bar) ?? 0) + 1);
  }
  const most = Math.max(...bars.values());
  paint.fillStyle = colours.getPropertyValue("--strip-teal");
  for (const [bar, count] of bars) {
    const tall = Math.max(3, (count / most) * (height - 10));
    paint.fillRect(bar * 4, height - tall - 3, 3, tall);
  }
}
