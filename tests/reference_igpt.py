"""
Image GPT written out from openai/image-gpt (src/model.py, its lines in brackets), one image, one head and one position
at a time. It shares no code with the package and uses no part of transformers. Slow, and meant to be.

`weights` maps the names of our state dict to tensors; give leaves that require gradients to compare gradients.
"""

import torch


EPS = 1e-5


def norm(x, gain):
    """Divides by the root mean square: no mean, no bias [31-39]."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + EPS) * gain


def gelu2(x):
    """[28]"""
    return x / (1 + torch.exp(-1.702 * x))


def attend(query, keys, values):
    """One query (D,) over keys and values (T, D): a weighted mean of the values [76-90]."""
    scores = torch.stack([torch.dot(query, key) for key in keys]) / query.shape[0] ** 0.5
    weights = torch.exp(scores - scores.max())
    weights = weights / weights.sum()
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def attention(x, weights, name, num_heads, causal, window=None, rotation=None):
    """
    x (T, C). A causal position sees itself and those before it, any other sees all [92-125]. Of these a window leaves
    the last `window`, itself included, or, where it sees all, those at most `window` away. With `rotation`, the base
    and the width of the grid, queries and keys are turned (not the paper's).
    """
    length, width = x.shape
    size = width // num_heads
    qkv = x @ weights[f"{name}.c_attn.weight"].T
    query, key, value = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    rows = []
    for i in range(length):
        seen = [j for j in range(length) if j <= i or not causal]
        if window is not None:
            seen = [j for j in seen if (i - j < window if causal else abs(i - j) <= window)]
        heads = []
        for head in range(num_heads):
            columns = slice(head * size, (head + 1) * size)
            asked, keys = query[i, columns], key[seen, columns]
            if rotation is not None:
                asked = turned(asked, i, rotation)
                keys = torch.stack([turned(row, j, rotation) for row, j in zip(keys, seen, strict=True)])
            heads.append(attend(asked, keys, value[seen, columns]))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ weights[f"{name}.c_proj.weight"].T


def turned(x, position, rotation):
    """x (D,) as D / 2 complex numbers x_k + i x_{k + D / 2}: half of them turned by the row, half by the column."""
    base, width = rotation
    half = x.shape[0] // 2
    row, column = position // width, position % width
    numbers = []
    for k in range(half):
        place = row if k < half // 2 else column
        angle = torch.tensor(place * base ** (-(k % (half // 2)) / (half // 2)), dtype=x.dtype)
        numbers.append(torch.complex(x[k], x[k + half]) * torch.polar(torch.ones_like(angle), angle))
    return torch.cat([torch.stack(numbers).real, torch.stack(numbers).imag])


def mlp(x, weights, name):
    """[128-132]"""
    return gelu2(x @ weights[f"{name}.c_fc.weight"].T) @ weights[f"{name}.c_proj.weight"].T


def backbone(embedded, weights, num_heads, causal, windows=None, rotation=None):
    """
    embedded (T, C), content without positions. `windows` has one for each block, None for full attention. Returns the
    final norm's output (T, C) and every layer's features: the normed input of each block and, last, the final norm's
    output, averaged over positions (paper, 2.4).
    """
    hidden = embedded + weights["wpe.weight"][: embedded.shape[0]]
    num_layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    features = []
    for layer in range(num_layers):
        block = f"h.{layer}"
        normed = norm(hidden, weights[f"{block}.ln_1.weight"])
        features.append(normed.mean(0))
        window = None if windows is None else windows[layer]
        hidden = hidden + attention(normed, weights, f"{block}.attn", num_heads, causal, window, rotation)
        normed = norm(hidden, weights[f"{block}.ln_2.weight"])
        hidden = hidden + mlp(normed, weights, f"{block}.mlp")
    final = norm(hidden, weights["ln_f.weight"])
    return final, [*features, final.mean(0)]


def causal_hidden(tokens, weights, num_heads, windows=None, rotation=None):
    """Tokens (T,) of one image: the start vector in front, the last token dropped [177-180]."""
    start = weights["wte.weight"][-1]
    embedded = torch.stack([start, *(weights["wte.weight"][token] for token in tokens[:-1])])
    return backbone(embedded, weights, num_heads, True, windows, rotation)


def masked_hidden(tokens, keep, weights, num_heads, windows=None, rotation=None):
    """Content embeddings are zeroed where `keep` is 0; positions stay; attention sees everything [160-162]."""
    embedded = torch.stack([weights["wte.weight"][token] * k for token, k in zip(tokens, keep, strict=True)])
    return backbone(embedded, weights, num_heads, False, windows, rotation)


def negative_log_likelihood(logits, token):
    """-log softmax(logits)[token], in nats."""
    return torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[token]


def causal_model(images, weights, head, num_heads, windows=None, rotation=None):
    """Logits (B, T, V) and the mean over images of the mean over all pixels' negative log-likelihoods [195-199]."""
    hidden = [causal_hidden(tokens, weights, num_heads, windows, rotation)[0] for tokens in images]
    logits = torch.stack([states @ head.T for states in hidden])
    losses = [
        sum(negative_log_likelihood(row, token) for row, token in zip(rows, tokens, strict=True)) / len(tokens)
        for rows, tokens in zip(logits, images, strict=True)
    ]
    return logits, sum(losses) / len(losses)


def masked_model(images, masks, weights, head, num_heads, windows=None, rotation=None):
    """Logits (B, T, V) and the loss: a mean over each image's masked pixels, then over images [201-204]."""
    keeps = (~masks).to(head.dtype)
    pairs = zip(images, keeps, strict=True)
    hidden = [masked_hidden(tokens, keep, weights, num_heads, windows, rotation)[0] for tokens, keep in pairs]
    logits = torch.stack([states @ head.T for states in hidden])
    losses = []
    for rows, tokens, mask in zip(logits, images, masks, strict=True):
        scored = [negative_log_likelihood(r, t) for r, t, m in zip(rows, tokens, mask, strict=True) if m]
        losses.append(sum(scored) / len(scored))
    return logits, sum(losses) / len(losses)
