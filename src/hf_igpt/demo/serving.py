"""Starting the demo with settings that are safe on a public machine."""

import re
from typing import Any

from hf_igpt.demo.inputs import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS


MAX_SESSIONS = 128
# Of a file, on Linux, macOS and Windows alike.
MAX_NAME_BYTES = 255
# Routes of Gradio that fetch what is at an address and pass it on; and some that the page has no use for: one prints
# what a stranger sends, one keeps a file for every call, one converts videos.
_REFUSED = re.compile(
    r"/(?:file[=/]\W*[a-z][a-z0-9+.-]*:|proxy=|custom_component/|deep_link|process_recording)", re.IGNORECASE
)


class RefuseRoutes:
    """An ASGI layer in front of Gradio: nobody makes this machine fetch from another one, or work for no page."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (_REFUSED.search(scope["path"]) or _no_file_is_named_so(scope["path"])):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("This is not served here.", status_code=403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _no_file_is_named_so(path: str) -> bool:
    """Whether asking the file system for such a name would be an error, which Gradio doesn't expect."""
    return "\0" in path or any(len(part.encode()) > MAX_NAME_BYTES for part in path.split("/"))


def launch_options(host: str | None, port: int | None) -> dict[str, Any]:
    """
    Arguments of `gr.Blocks.launch`: no link through others' servers, no file but uploads, no traces in the browser, no
    fonts or scripts from elsewhere, no history of what users did.

    Args:
        host: None takes the environment's, which a Space sets, or loopback.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from hf_igpt.demo.html import STYLE

    fonts = ["system-ui", "sans-serif"]
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "show_error": False,
        "allowed_paths": [],
        "app_kwargs": {"middleware": [Middleware(RefuseRoutes)]},
        "max_file_size": MAX_UPLOAD_BYTES,
        "state_session_capacity": MAX_SESSIONS,
        "strict_cors": True,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "quiet": True,
        "css": STYLE,
        "theme": gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
    }


def limit_pixels() -> None:
    """
    Makes Pillow refuse, in this whole process, images with more pixels than an upload may have: the painting editors
    read images without asking `open_image`.
    """
    from PIL import Image

    # Pillow warns from its limit on, and refuses from twice its limit on.
    Image.MAX_IMAGE_PIXELS = MAX_UPLOAD_PIXELS // 2
