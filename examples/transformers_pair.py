"""Two Hugging Face classifiers become one model, on 1,797 scans of handwritten digits.

The models are made and trained here, so that nothing is downloaded. Yours are
``ViTForImageClassification.from_pretrained(...)``, or a ``pipeline("image-classification", ...)``.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import ebjr


def vision_transformer(width, layers):
    """A small one, untrained."""
    config = ViTConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=8,
        patch_size=2 if layers > 1 else 4,
        num_labels=10,
        hidden_dropout_prob=0.0,
    )
    return ViTForImageClassification(config)


def train(module, pixels, labels, epochs):
    """Fit a module to tensors, the plain way."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(64):
            loss = module(pixels[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


torch.manual_seed(0)
torch.set_num_threads(1)  # such small networks are faster on one
digits = load_digits()
gray = (digits.images * 255 / 16).astype(np.uint8)
images = np.repeat(gray[..., None], 3, axis=-1)  # decoded RGB images, (n, 8, 8, 3)
labels = digits.target
seen, rest = slice(0, 700), slice(700, None)

processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
pixels = processor(list(images[seen]), return_tensors="pt")["pixel_values"]
targets = torch.as_tensor(labels[seen])
cheap = train(vision_transformer(32, layers=1), pixels, targets, epochs=5)
costly = train(vision_transformer(64, layers=2), pixels, targets, epochs=12)

student = ebjr.load_model(cheap, processor=processor, name="small-vit")
teacher = ebjr.load_model(costly, processor=processor, name="large-vit")

outcomes = ebjr.record(student, teacher, images[rest], labels[rest])
calibration, held_out = outcomes.split(0.5, seed=0)
point = ebjr.calibrate(calibration, goal="match-teacher", tolerance=0.01)
print(ebjr.evaluate(held_out, point).verdict)

joint = ebjr.JointClassifier(student, teacher, point.router, blend=point.blend)
answer = joint(images[rest])
print(f"{answer.deferred.mean():.1%} of the digits went to the teacher")
