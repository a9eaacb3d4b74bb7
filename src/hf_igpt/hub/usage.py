"""Code that a card shows for loading and using a model."""

import json


AUTO_CLASSES = {
    "next_pixel": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedImageModeling",
    "classifier": "AutoModelForImageClassification",
    "backbone": "AutoModel",
}
_WHAT = {
    "next_pixel": (
        "images = processor.decode(model.generate(num_return_sequences=4)[:, 1:])  # drawn images",
        'tokens = processor(images, return_tensors="pt").input_ids',
        "print(model(labels=tokens).loss)  # nats per token",
    ),
    "masked": (
        "images = processor.decode(model.generate(num_return_sequences=4, num_steps=32))  # drawn images",
        'tokens = processor(images, return_tensors="pt").input_ids',
        "features = model.pooled_features(tokens)  # (images, width)",
    ),
    "classifier": (
        'tokens = processor(["image.png"], return_tensors="pt").input_ids',
        "print(model.config.id2label[model(tokens).logits.argmax().item()])",
    ),
    "backbone": (
        'tokens = processor(["image.png"], return_tensors="pt").input_ids',
        "features = model.pooled_features(tokens)  # (images, width)",
    ),
}


def usage(name: str, head: str) -> str:
    """Python that loads a model with its own code and uses it once."""
    auto_class = AUTO_CLASSES[head]
    lines = [
        f"from transformers import AutoImageProcessor, {auto_class}",
        "",
        f"name = {json.dumps(name)}",
        f"model = {auto_class}.from_pretrained(name, trust_remote_code=True).eval()",
        "processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)",
        *_WHAT[head],
    ]
    return "\n".join(lines)
