"""DETR in fifty lines, after the paper's appendix (Carion et al. 2020, listing 1), and a training loop.

The model is the paper's: a ResNet-50, PyTorch's own transformer, learned positions, one prediction. The loss
is the library's: it takes any model's class logits and boxes.

    python examples/minimal_detr.py
"""

import torch
from torch import nn

from detr_fast import HungarianMatcher, SetCriterion
from detr_fast.criterion import detection_weights
from detr_fast.models.resnet import ResNet


class MinimalDETR(nn.Module):
    def __init__(self, num_classes, hidden_dim=256, nheads=8, num_encoder_layers=6, num_decoder_layers=6):
        super().__init__()
        self.backbone = ResNet("resnet50")
        self.conv = nn.Conv2d(2048, hidden_dim, 1)
        self.transformer = nn.Transformer(
            hidden_dim, nheads, num_encoder_layers, num_decoder_layers, batch_first=True
        )
        self.linear_class = nn.Linear(hidden_dim, num_classes + 1)
        self.linear_bbox = nn.Linear(hidden_dim, 4)
        self.query_pos = nn.Parameter(torch.rand(100, hidden_dim))
        self.row_embed = nn.Parameter(torch.rand(50, hidden_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(50, hidden_dim // 2))

    def forward(self, images):
        """images [B, 3, H, W], all of one size -> logits [B, 100, K + 1] and boxes [B, 100, 4] cxcywh."""
        features = self.conv(self.backbone(images)[-1])
        batch, _, height, width = features.shape
        columns = self.col_embed[:width].expand(height, -1, -1)
        rows = self.row_embed[:height, None].expand(-1, width, -1)
        position = torch.cat([columns, rows], dim=-1).flatten(0, 1)
        queries = self.query_pos.expand(batch, -1, -1)
        h = self.transformer(position + 0.1 * features.flatten(2).transpose(1, 2), queries)
        return {"pred_logits": self.linear_class(h), "pred_boxes": self.linear_bbox(h).sigmoid()}


def main(steps=8):
    torch.manual_seed(0)
    model = MinimalDETR(num_classes=91, num_encoder_layers=2, num_decoder_layers=2)
    criterion = SetCriterion(91, HungarianMatcher(1, 5, 2), detection_weights(layers=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(2, 3, 128, 160)
    targets = [
        {
            "labels": torch.tensor([17, 63]),
            "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.4, 0.6]]),
        },
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.9]])},
    ]
    for step in range(steps):
        loss = criterion.total(criterion(model(images), targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
