"""
The forward pass of openai/image-gpt's graph (src/model.py there) in float64 NumPy, one image at a time, on variables
named as in it. What the sampler of masks draws is given instead.
"""

import numpy as np


def graph_shapes(*, values=10, side=4, width=24, heads=6, layers=2, bert=False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the graph's variables, without its scope."""
    shapes = {"wpe": (side * side, width), "wte": (values, width), "wtet": (values, width), "ln_f/g": (width,)}
    if not bert:
        shapes["sos"] = (width,)
    for layer in range(layers):
        scope = f"h{layer}/"
        shapes |= {scope + f"attn/{name}_proj": (heads, width // heads, width) for name in "qkvc"}
        shapes |= {scope + "ln_1/g": (width,), scope + "ln_2/g": (width,)}
        shapes |= {scope + "mlp/c_fc/w": (width, 4 * width), scope + "mlp/c_proj/w": (4 * width, width)}
    return shapes


def make_variables(seed=0, **sizes) -> dict[str, np.ndarray]:
    """Random float32 variables, large enough that logits differ by about 1."""
    generator = np.random.default_rng(seed)
    shapes = graph_shapes(**sizes)
    variables = {}
    for name, shape in shapes.items():
        noise = generator.normal(size=shape)
        scale = 1.0 if name in ("wpe", "wte", "sos") else shapes["ln_f/g"][0] ** -0.5
        variables[name] = np.float32(1 + 0.3 * noise if name.endswith("/g") else scale * noise)
    return variables


def norm(x, g):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * g


def gelu2(x):
    return x / (1 + np.exp(-1.702 * x))


def softmax(x):
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def attention(x, variables, scope, bert):
    heads = variables[scope + "q_proj"].shape[0]
    output = np.zeros_like(x)
    for head in range(heads):
        q, k, v = (x @ variables[scope + f"{name}_proj"][head].T for name in "qkv")
        weights = q @ k.T / np.sqrt(v.shape[-1])
        if not bert:
            lower = np.tril(np.ones_like(weights))
            weights = weights * lower - 1e10 * (1 - lower)
        output += softmax(weights) @ v @ variables[scope + "c_proj"][head]
    return output


def forward(variables, image, kept=None):
    """
    Logits (tokens, values) and loss in nats per token of one image. `kept` is for masked models, 1 for a token seen.
    """
    variables = {name: np.float64(array) for name, array in variables.items()}
    bert = kept is not None
    h = variables["wte"][image]
    h = h * np.float64(kept)[:, None] if bert else np.concatenate([variables["sos"][None], h[:-1]])
    h = h + variables["wpe"][: len(image)]
    layers = len({name.split("/")[0] for name in variables if name.startswith("h")})
    for layer in range(layers):
        scope = f"h{layer}/"
        h = h + attention(norm(h, variables[scope + "ln_1/g"]), variables, scope + "attn/", bert)
        inside = gelu2(norm(h, variables[scope + "ln_2/g"]) @ variables[scope + "mlp/c_fc/w"])
        h = h + inside @ variables[scope + "mlp/c_proj/w"]
    logits = norm(h, variables["ln_f/g"]) @ variables["wtet"].T
    nats = -np.log(softmax(logits))[np.arange(len(image)), image]
    if not bert:
        return logits, nats.mean()
    hidden = 1 - np.float64(kept)
    return logits, (nats * hidden).sum() / hidden.sum()
