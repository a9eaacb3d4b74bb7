"""The page, in Gradio: three tabs, and which control calls which function."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hf_igpt.demo import handlers
from hf_igpt.demo.checkpoints import Checkpoint, Library
from hf_igpt.demo.features import best_layer
from hf_igpt.demo.html import Picture, buttons, escaped, message, problem
from hf_igpt.demo.inputs import (
    KEEP_ROWS,
    KEEPS,
    MAX_IMAGES,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MIN_TEMPERATURE,
)


TITLE = "Image GPT"
# Images that nobody looks at any more are forgotten: seconds.
STATE_SECONDS = 3600
CACHE_AGE = (600, 3600)
DEFAULT_STEPS = 32
# Canvases that were sent and not yet read.
MAX_WAITING_CANVASES = 64
# One at a time: what runs the model, whoever asks.
ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
READING = {"concurrency_id": "reading", "concurrency_limit": 2}
BRUSH_COLORS = ["#ffffff", "#e53935", "#1e88e5", "#43a047", "#fdd835", "#000000"]
HOLE_COLOR = "#ff2d95"
INK_CANVAS = (256, 256)
PRESSED = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-number]');
  if (button) trigger('click', {number: Number(button.dataset.number)});
});
"""


def build(library: Library, max_waiting: int) -> gr.Blocks:
    """
    The page over a list of checkpoints, of which the first is opened at once.

    Args:
        max_waiting: how many may wait for the model; more are told to come back.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CACHE_AGE) as page:
        Page(library, max_waiting).lay_out(page)
    page.queue(max_size=max_waiting, default_concurrency_limit=1)
    return page


class Page:
    """The controls of a page and what they do."""

    def __init__(self, library: Library, max_waiting: int):
        self.library = library
        self.max_waiting = max_waiting
        self.stops = handlers.Stops()
        self.names = list(library)
        self.first = library[self.names[0]]
        self.start = handlers.choose_example(self.first, 0)

    def lay_out(self, page: gr.Blocks) -> None:
        """Makes the controls inside the open `gr.Blocks`, and connects them."""
        self.image = gr.State(self.start.image, time_to_live=STATE_SECONDS)
        gr.HTML(f"<h1>{TITLE}</h1>")
        self.checkpoint = gr.Dropdown(self.names, value=self.names[0], label="Checkpoint")
        self.summary = gr.HTML(message(self.first.summary()))
        with gr.Tabs():
            with gr.Tab("Images"), gr.Row():
                with gr.Column(min_width=300):
                    self._image_controls()
                    self._drawing_controls()
                with gr.Column(min_width=300):
                    self._results()
            with gr.Tab("Palette") as self.palette_tab:
                self.palette = gr.HTML(elem_id="palette")
            with gr.Tab("Features") as self.features_tab:
                self._features()
        self._connect(page)

    def _image_controls(self) -> None:
        gr.HTML("<h2>1. An image to start from</h2>")
        with gr.Tabs():
            with gr.Tab("Example"):
                self.examples = gr.HTML(self._examples(self.first), js_on_load=PRESSED, elem_id="examples")
                self.nothing = gr.Button("No image: draw whole ones", size="sm")
            with gr.Tab("Upload"):
                # Of any type: with a list of them Gradio's page drops other files without a word.
                self.upload = gr.UploadButton("Upload an image", elem_id="upload")
            with gr.Tab("Draw yourself"):
                self.ink = gr.ImageEditor(
                    _editor(Image.new("RGB", INK_CANVAS)),
                    type="pil",
                    label="Draw with the brush",
                    sources=(),
                    transforms=(),
                    layers=False,
                    buttons=[],
                    brush=gr.Brush(default_size=24, colors=BRUSH_COLORS, default_color=BRUSH_COLORS[0]),
                    elem_id="ink",
                )
                self.use_ink = gr.Button("Use the drawing", size="sm")
        self.status = gr.HTML(self.start.status, elem_id="image-status")
        with gr.Row():
            self.view = gr.HTML(self.start.view, elem_id="view", scale=2, min_width=250)
            surprise = handlers.surprise_view(self.first, self.start.image)
            self.surprise = gr.HTML(surprise, elem_id="surprise", scale=1, min_width=125)

    def _drawing_controls(self) -> None:
        height = self.first.grid[0]
        gr.HTML("<h2>2. What is kept of it</h2>")
        self.keep = gr.Radio(list(KEEPS), value=KEEP_ROWS, label="Keep", show_label=False, elem_id="keep")
        self.rows = gr.Slider(0, height - 1, value=height // 2, step=1, label="Rows kept", elem_id="rows")
        with gr.Column(visible=False) as self.hole_box:
            gr.HTML(message("Paint over the part to draw anew. A next-pixel model draws on from its first pixel."))
            self.hole = gr.ImageMask(
                _editor(self.start.canvas),
                type="pil",
                label="Paint the hole",
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                brush=gr.Brush(default_size=24, colors=[HOLE_COLOR], default_color=HOLE_COLOR, color_mode="fixed"),
                elem_id="hole",
            )
        gr.HTML("<h2>3. How it is drawn</h2>")
        self.count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Number of images", elem_id="count")
        self.temperature = gr.Slider(
            MIN_TEMPERATURE, MAX_TEMPERATURE, value=1, step=0.05, label="Temperature (1: the model's own)"
        )
        self.top_k = gr.Slider(0, MAX_TOP_K, value=0, step=1, label="Top-k: only the k likeliest colours (0: all)")
        self.seed = gr.Number(0, label="Seed (the same one draws the same images)", minimum=0, maximum=MAX_SEED)
        self.steps = gr.Slider(**_steps(self.first), step=1, label="Steps of the masked model")

    def _results(self) -> None:
        gr.HTML("<h2>4. The images</h2>")
        with gr.Row():
            self.go = gr.Button("Draw", variant="primary", elem_id="go")
            self.halt = gr.Button("Stop", variant="stop", elem_id="stop")
        self.progress = gr.HTML(
            message(f"One request is drawn at a time; up to {self.max_waiting} wait, and see their place."),
            elem_id="progress",
        )
        self.drawn = gr.HTML(elem_id="drawn", min_height=160)

    def _features(self) -> None:
        gr.HTML("<h2>What a linear probe reads from each layer</h2>")
        self.probe = gr.HTML(elem_id="probe")
        gr.HTML("<h2>Nearest neighbours of the image</h2>")
        last = self.first.num_layers
        self.layer = gr.Slider(0, last, value=best_layer(self.first), step=1, label="Layer of the features")
        self.neighbours = gr.HTML(elem_id="neighbours")

    def _connect(self, page: gr.Blocks) -> None:
        for control in (self.ink, self.hole, self.upload):
            _refuse_addresses(control)
        for editor in (self.ink, self.hole):
            editor.blob_storage = _Newest(MAX_WAITING_CANVASES)
        for control in (self.rows, self.count, self.temperature, self.top_k, self.seed, self.steps, self.layer):
            _pass_on(control)
        taken = [self.image, self.view, self.hole, self.status]
        choices = (
            (self.upload.upload, self._upload, [self.checkpoint, self.upload], "upload"),
            (self.use_ink.click, self._ink, [self.checkpoint, self.ink], "drawing"),
            (self.examples.click, self._example, [self.checkpoint], "example"),
            (self.nothing.click, self._nothing, [self.checkpoint], "no_image"),
        )
        seen = {"inputs": [self.checkpoint, self.image], "outputs": self.surprise, **ON_MODEL}
        for listen, function, inputs, name in choices:
            event = listen(function, inputs, taken, api_name=name, show_progress_on=self.status, **READING)
            event.then(self._surprise, **seen, api_visibility="private")
        self.checkpoint.change(
            self._checkpoint,
            [self.checkpoint],
            [*taken, self.summary, self.examples, self.rows, self.steps, self.layer, self.drawn, self.neighbours],
            api_name="checkpoint",
            **ON_MODEL,
        ).then(self._surprise, **seen, api_name="surprise")
        self.keep.change(_show_controls, self.keep, [self.rows, self.hole_box], queue=False, api_visibility="private")
        settings = [self.count, self.temperature, self.top_k, self.seed, self.steps]
        running = self.go.click(
            self._generate,
            [self.checkpoint, self.image, self.keep, self.rows, self.hole, *settings],
            [self.drawn, self.progress],
            api_name="generate",
            show_progress_on=self.progress,
            **ON_MODEL,
        )
        self.halt.click(self._stop, None, self.progress, queue=False, cancels=[running], api_name="stop")
        self.palette_tab.select(
            self._palette, [self.checkpoint, self.image], self.palette, api_name="palette", **ON_MODEL
        )
        near = {"inputs": [self.checkpoint, self.image, self.layer], "outputs": self.neighbours, **ON_MODEL}
        self.features_tab.select(self._probe, [self.checkpoint], self.probe, api_name="probe", **ON_MODEL).then(
            self._neighbours, **near, api_name="neighbours"
        )
        self.layer.change(self._neighbours, **near, trigger_mode="always_last", api_visibility="private")

    def _examples(self, checkpoint: Checkpoint) -> str:
        pictures = [
            Picture(example.image, f"Example {number}: {example.caption}", example.caption)
            for number, example in enumerate(checkpoint.examples, start=1)
        ]
        return buttons(pictures)

    def _upload(self, name: Any, path: Any) -> tuple:
        return self._taken(lambda: handlers.choose_upload(self.library[name], path))

    def _ink(self, name: Any, value: Any) -> tuple:
        return self._taken(lambda: handlers.choose_drawing(self.library[name], value))

    def _example(self, name: Any, event: gr.EventData) -> tuple:
        number = (event._data or {}).get("number") if isinstance(event._data, dict) else None
        return self._taken(lambda: handlers.choose_example(self.library[name], number))

    def _nothing(self, name: Any) -> tuple:
        return self._taken(lambda: handlers.chosen(self.library[name], None, ""))

    def _taken(self, choose: Callable[[], handlers.Chosen]) -> tuple:
        """State, view, hole editor and status; on a user's mistake what was there before, and the cause."""
        try:
            chosen = choose()
        except ValueError as error:
            return gr.skip(), gr.skip(), gr.skip(), problem(str(error))
        return chosen.image, chosen.view, _editor(chosen.canvas), chosen.status

    def _checkpoint(self, name: Any) -> tuple:
        checkpoint = self.library[name]
        height = checkpoint.grid[0]
        return (
            *self._taken(lambda: handlers.choose_example(checkpoint, 0)),
            message(checkpoint.summary()),
            self._examples(checkpoint),
            gr.update(maximum=height - 1, value=height // 2),
            gr.update(**_steps(checkpoint)),
            gr.update(maximum=checkpoint.num_layers, value=best_layer(checkpoint)),
            "",
            "",
        )

    def _surprise(self, name: Any, image: Any) -> str:
        return _shown(lambda: handlers.surprise_view(self.library[name], image))

    def _generate(
        self,
        name: Any,
        image: Any,
        keep: Any,
        rows: Any,
        hole: Any,
        count: Any,
        temperature: Any,
        top_k: Any,
        seed: Any,
        steps: Any,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str]]:
        numbers = {"num_images": count, "temperature": temperature, "top_k": top_k, "seed": seed, "num_steps": steps}
        session = request.session_hash or ""
        event = self.stops.start(session)
        try:
            yield from handlers.generate(self.library[name], image, keep, rows, hole, numbers, event.is_set)
        except ValueError as error:
            yield gr.skip(), problem(str(error))
        finally:
            self.stops.end(session, event)

    def _stop(self, request: gr.Request) -> str:
        self.stops.stop(request.session_hash or "")
        return message("Stopped. What is grey was not drawn.")

    def _palette(self, name: Any, image: Any) -> str:
        return _shown(lambda: handlers.palette_view(self.library[name], image))

    def _probe(self, name: Any) -> str:
        return _shown(lambda: handlers.probe_view(self.library[name]))

    def _neighbours(self, name: Any, image: Any, layer: Any) -> str:
        return _shown(lambda: handlers.neighbours_view(self.library[name], image, layer))


def _shown(view: Callable[[], str]) -> str:
    try:
        return view()
    except ValueError as error:
        return problem(str(error))


def _show_controls(keep: str) -> tuple[Any, Any]:
    return gr.update(visible=keep == KEEP_ROWS), gr.update(visible=keep == KEEPS[-1])


def _steps(checkpoint: Checkpoint) -> dict[str, Any]:
    positions = checkpoint.model.config.n_positions
    value = min(DEFAULT_STEPS, positions)
    return {"minimum": 1, "maximum": positions, "value": value, "visible": not checkpoint.is_causal}


def _editor(background: Image.Image) -> dict[str, Any]:
    return {"background": np.asarray(background), "layers": [], "composite": None}


class _Newest(dict):
    """Holds so many entries, the newest: Gradio keeps what is sent for an event that may never come."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self.most:
            del self[next(iter(self))]


def _refuse_addresses(component: gr.components.Component) -> None:
    """Gradio fetches what is at an address that a client names in place of an upload; here nobody makes it fetch."""
    move = component.async_move_resource_to_block_cache

    @wraps(move)
    async def moved(path: Any) -> str | None:
        if "://" in str(path):
            raise gr.Error("A file must be uploaded: addresses are not fetched.")
        return await move(path)

    component.async_move_resource_to_block_cache = moved


def _pass_on(control: gr.components.Component) -> None:
    """Leaves checking to `read_settings`, whose message tells the field; Gradio's is an error without words."""
    control.preprocess = lambda payload: payload


__all__ = ["TITLE", "build", "escaped"]
