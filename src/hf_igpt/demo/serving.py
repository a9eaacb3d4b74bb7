"""Starting the demo with settings that are safe on a public machine."""

from typing import Any

from hf_igpt.demo.inputs import MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS


MAX_SESSIONS = 128


def launch_options(host: str | None, port: int | None) -> dict[str, Any]:
    """
    Arguments of `gr.Blocks.launch`: no link through others' servers, no file but uploads, no traces in the browser, no
    fonts or scripts from elsewhere.

    Args:
        host: None takes the environment's, which a Space sets, or loopback.
    """
    import gradio as gr

    from hf_igpt.demo.html import STYLE

    fonts = ["system-ui", "sans-serif"]
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "show_error": False,
        "allowed_paths": [],
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
