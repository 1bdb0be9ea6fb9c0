// Draws the charts in the colours of the theme, sorts and filters the leaderboard, and reloads the
// page of a running sweep without changing what the reader sees.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = matchMedia("(max-width: 34rem)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const PRINT_PX = 680;

  // The reader's choices, kept across reloads.
  const key = `thaw-review:${location.pathname}`;
  const kept = (() => {
    try {
      return JSON.parse(sessionStorage.getItem(key)) || {};
    } catch {
      return {}; // this browser has no storage for files
    }
  })();
  const keep = (changes) => {
    Object.assign(kept, changes);
    try {
      sessionStorage.setItem(key, JSON.stringify(kept));
    } catch {
      // as above: the page works without storage
    }
  };

  // ---- Charts ----
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const known = new Map();
  const colour = (css) => {
    if (!known.has(css)) {
      probe.style.color = css;
      known.set(css, toRgb(getComputedStyle(probe).color));
    }
    return known.get(css);
  };
  // Plotly can't parse oklab(); a canvas can.
  const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const toRgb = (css) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = css;
    brush.fillRect(0, 0, 1, 1);
    const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
    return `rgba(${red},${green},${blue},${(alpha / 255).toFixed(2)})`;
  };
  const paint = (value) => {
    if (typeof value === "string") return value.startsWith("var(") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(paint);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, paint(part)]));
  };
  // The template of all charts, adapted to this reader's font and device.
  const layoutOf = ({ layout }, width) => {
    const painted = paint(layout);
    const shared = painted.template.layout;
    shared.font.family = getComputedStyle(document.body).fontFamily;
    shared.dragmode = touch.matches ? false : "zoom";
    shared.xaxis.fixedrange = shared.yaxis.fixedrange = touch.matches;
    if (narrow.matches) shared.margin.l = 40;
    return { ...painted, ...(width ? { width } : { autosize: true }) };
  };
  const draw = (name, width) => {
    const box = document.getElementById(`chart-${name}`);
    if (!box) return undefined;
    const choice = document.querySelector(`select[data-chart="${name}"]`);
    const all = Object.values(figures[name]);
    const figure = all[choice ? Math.max(0, choice.selectedIndex) : 0];
    return Plotly.react(box, paint(figure.data), layoutOf(figure, width), {
      displayModeBar: false, responsive: !width, showTips: false,
    });
  };
  const drawAll = (width) => {
    known.clear();
    return Promise.all(Object.keys(figures).map((name) => draw(name, width)));
  };
  for (const select of document.querySelectorAll("select[data-chart]")) {
    const { chart } = select.dataset;
    const before = [...select.options].findIndex((option) => option.value === kept[chart]);
    if (before > 0) select.selectedIndex = before;
    select.addEventListener("change", () => {
      keep({ [chart]: select.value });
      draw(chart);
    });
  }
  dark.addEventListener("change", () => drawAll());
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    drawAll(PRINT_PX);
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    drawAll();
  });

  // ---- Leaderboard ----
  const table = document.getElementById("trials");
  const form = document.getElementById("filters");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const words = new Map(rows.map((row) => [row, row.innerText.toLowerCase()]));
    const valueOf = (row, column, kind) => {
      const cell = row.cells[column];
      const text = cell.dataset.value ?? cell.innerText.trim();
      if (kind === "text") return text;
      return text === "" ? null : Number(text);
    };
    const sort = (column, falling) => {
      const { kind } = heads[column].dataset;
      const sign = falling ? -1 : 1;
      const sorted = rows.map((row) => [valueOf(row, column, kind), row]).sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // without a value: last
        if (kind === "text") return sign * a.localeCompare(b);
        return a === b ? 0 : sign * (a < b ? -1 : 1);
      });
      heads.forEach((head, at) => {
        if (at === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      body.append(...sorted.map(([, row]) => row));
      keep({ sort: [column, falling] });
    };
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        sort(column, head.getAttribute("aria-sort") === "ascending");
      });
    });
    const filter = () => {
      const wanted = Object.fromEntries(new FormData(form));
      const parts = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !(
          ["network", "depth", "init", "state"].every((name) => !wanted[name] || row.dataset[name] === wanted[name])
          && parts.every((part) => words.get(row).includes(part))
        );
        shown += !row.hidden;
      }
      document.getElementById("count").value = `${shown} of ${rows.length} trials`;
      keep({ filters: wanted });
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const [name, value] of Object.entries(kept.filters || {})) {
      if (form.elements[name]) form.elements[name].value = value;
    }
    if (kept.sort && heads[kept.sort[0]]) sort(...kept.sort);
    filter();
  }

  // ---- A running sweep ----
  const refreshS = Number(document.body.dataset.refreshS || 0);
  const finish = () => {
    document.documentElement.dataset.drawn = "";
    if (!refreshS) return;
    if (kept.scroll) scrollTo({ top: kept.scroll, behavior: "instant" });
    const pause = document.getElementById("pause");
    const show = () => {
      pause.setAttribute("aria-pressed", String(Boolean(kept.paused)));
      pause.textContent = kept.paused ? "Updates paused" : "Pause updates";
    };
    pause.addEventListener("click", () => {
      keep({ paused: !kept.paused });
      show();
    });
    show();
    setInterval(() => {
      const busy = document.activeElement?.matches("input, select");
      if (kept.paused || busy || document.hidden) return;
      keep({ scroll: scrollY });
      location.reload();
    }, 1000 * refreshS);
  };
  if (refreshS) history.scrollRestoration = "manual";
  drawAll().then(finish);
})();
