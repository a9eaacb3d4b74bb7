"""
Image GPT for Hugging Face transformers: train, measure, use and share it.

Importing this package registers its classes with transformers' Auto classes and pipelines; nothing else happens.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_igpt import ImageGPTConfig
from .configuration_igpt_vqvae import ImageGPTVQVAEConfig
from .image_processing_igpt import IGPTImageProcessor
from .modeling_igpt import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTForMaskedImageModeling,
    ImageGPTModel,
)
from .modeling_igpt_vqvae import ImageGPTVQVAEModel
from .pipeline_igpt import ImageCompletionPipeline, ImageGPTFeatureExtractionPipeline


__version__ = "0.1.0"


class AutoModelForCausalImageModeling(_BaseAutoModelClass):
    """Next-pixel image models: ours and transformers' own ImageGPT, which no Auto class of transformers reaches."""

    _model_mapping = MODEL_FOR_CAUSAL_IMAGE_MODELING_MAPPING


def _register() -> None:
    # Our config has the name of transformers' own, and the mappings compare names: hence `exist_ok`. Entries are
    # keyed by class, so nothing of transformers' is replaced.
    AutoConfig.register("igpt", ImageGPTConfig)
    AutoModel.register(ImageGPTConfig, ImageGPTModel, exist_ok=True)
    AutoModelForCausalLM.register(ImageGPTConfig, ImageGPTForCausalImageModeling)
    AutoModelForMaskedImageModeling.register(ImageGPTConfig, ImageGPTForMaskedImageModeling)
    AutoModelForCausalImageModeling.register(ImageGPTConfig, ImageGPTForCausalImageModeling, exist_ok=True)
    AutoModelForImageClassification.register(ImageGPTConfig, ImageGPTForImageClassification, exist_ok=True)
    AutoConfig.register("igpt_vqvae", ImageGPTVQVAEConfig)
    AutoModel.register(ImageGPTVQVAEConfig, ImageGPTVQVAEModel)
    # For every backend key: a missing one would stay transformers' processor. `AutoImageProcessor.register` would load
    # that one first and warn that it needs torchvision.
    backends = {"pil": IGPTImageProcessor, "torchvision": IGPTImageProcessor}
    IMAGE_PROCESSOR_MAPPING.register(ImageGPTConfig, backends, exist_ok=True)
    # No processor of videos, for any backend. Without the entry transformers' image pipelines guess one from ours, and
    # ask whether they may run the checkpoint's code to find it.
    VIDEO_PROCESSOR_MAPPING.register(ImageGPTConfig, {}, exist_ok=True)


def _register_pipelines() -> None:
    heads = (AutoModelForCausalLM, AutoModelForMaskedImageModeling)
    pipelines = {
        "image-completion": (ImageCompletionPipeline, heads),
        "igpt-feature-extraction": (ImageGPTFeatureExtractionPipeline, (AutoModel,)),
    }
    for task, (pipeline_class, models) in pipelines.items():
        # transformers warns about a task that is already there, as after a reload.
        PIPELINE_REGISTRY.supported_tasks.pop(task, None)
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, models, type="image")


_register()
_register_pipelines()

__all__ = [
    "AutoModelForCausalImageModeling",
    "IGPTImageProcessor",
    "ImageCompletionPipeline",
    "ImageGPTConfig",
    "ImageGPTFeatureExtractionPipeline",
    "ImageGPTForCausalImageModeling",
    "ImageGPTForImageClassification",
    "ImageGPTForMaskedImageModeling",
    "ImageGPTModel",
    "ImageGPTVQVAEConfig",
    "ImageGPTVQVAEModel",
]
