"""Vision transformers: v3's start, networks of libraries that are told something, and runs on them."""

import dataclasses
import json
import math

import pytest
import torch

import moco
from moco import recipe
from moco.build import build_encoder
from moco.encoder import library_network, trunk
from moco.recipes import get
from moco.vit import sines_and_cosines
from test_run import StopAfter, assert_same_runs
from test_v3 import small
from tiny import save_arrays, tiny_recipe

TINY = "timm/vit_tiny_patch16_224,img_size=16,patch_size=4,embed_dim=32,depth=2,num_heads=4"


def encoder(**changes):
    of = recipe.Encoder(
        arch=TINY,
        head="mlp",
        head_norm="all",
        hidden=24,
        dim=16,
        predictor=True,
        random_patches=True,
        bn_group=None,
    )
    return dataclasses.replace(of, **changes)


def test_the_start_is_v3s():
    pytest.importorskip("timm")
    net = build_encoder(tiny_recipe(encoder=encoder(), keys=recipe.MomentumKeys(shuffle=False)), 3)
    vit = net.trunk
    frozen = {name for name, p in vit.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    qkv, fc = vit.blocks[0].attn.qkv, vit.blocks[0].mlp.fc1
    for weight, bound in (
        (qkv.weight, math.sqrt(6 / (32 + 32))),
        (fc.weight, math.sqrt(6 / (32 + 128))),
        (vit.patch_embed.proj.weight, math.sqrt(6 / (3 * 16 + 32))),
    ):
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not any(
        p.any() for name, p in vit.named_parameters() if name.endswith("bias") and "norm" not in name
    )
    assert vit.cls_token.abs().max() < 1e-5
    assert not vit.pos_embed[0, 0].any()


def test_positions_are_sines_of_row_and_column():
    places = sines_and_cosines(2, 3, 8)
    for row in range(2):
        for column in range(3):
            angles = [row, row / 100], [column, column / 100]
            expected = [f(a) for of in angles for f in (math.sin, math.cos) for a in of]
            torch.testing.assert_close(places[3 * row + column], torch.tensor(expected))


def test_what_a_library_is_told_follows_the_name():
    assert library_network("resnet18") == ("", "resnet18", {})
    told = {"img_size": 32, "ratio": 0.5, "global_pool": "avg", "flag": True}
    name = "timm/vit_tiny_patch16_224,img_size=32,ratio=0.5,global_pool=avg,flag=True"
    assert library_network(name) == ("timm", "vit_tiny_patch16_224", told)
    for wrong in "timm/resnet10t,", "timm/resnet10t,size", "resnet18,width=3", "timm/resnet10t,a b=1":
        with pytest.raises(ValueError, match="must be ,name=value"):
            library_network(wrong)
    with pytest.raises(ValueError, match=r"torchvision/resnet18,size=3 cannot be made: .*'size'"):
        trunk("torchvision/resnet18,size=3")


@pytest.mark.parametrize("arch", ["resnet10", "torchvision/resnet18"])
def test_random_patches_need_a_transformer(arch):
    values = small(encoder=encoder(arch=arch))
    with pytest.raises(ValueError, match=r"encoder\.random_patches needs a vision transformer of timm"):
        build_encoder(values, 3)


def test_the_recipe_s_network_is_vit_s():
    pytest.importorskip("timm")
    values = get("v3-vit")
    net = build_encoder(values, 3)
    assert sum(p.numel() for p in net.trunk.parameters()) == 21_665_664  # 22 M, as the paper counts it
    assert net.trunk.blocks[0].attn.num_heads == 12
    assert [m.out_features for m in net.head if hasattr(m, "out_features")] == [4096, 4096, 256]
    assert values.loss.weight == pytest.approx(4 * values.loss.temperature)


def test_a_transformer_trains_resumes_and_goes_back_to_its_library(tmp_path):
    timm = pytest.importorskip("timm")
    values, data = small(encoder=encoder(), optimizer=recipe.AdamW(lr=0.01)), save_arrays(tmp_path)
    moco.pretrain(values, data=data, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        moco.pretrain(values, data=data, out=tmp_path / "cut", observers=[StopAfter(6)])
    moco.pretrain(values, data=data, out=tmp_path / "cut")
    assert_same_runs(tmp_path / "whole", tmp_path / "cut")
    ours = moco.load_backbone(tmp_path / "whole")
    assert moco.backbone_metadata(tmp_path / "whole")["arch"] == TINY
    start = build_encoder(dataclasses.replace(values, precision="float32"), 3).trunk
    assert torch.equal(ours.patch_embed.proj.weight, start.patch_embed.proj.weight)
    assert not torch.equal(ours.blocks[0].attn.qkv.weight, start.blocks[0].attn.qkv.weight)
    from moco.weights import export_weights

    done = export_weights(tmp_path / "whole", ["timm", "onnx"])
    assert all(found.difference is None or found.difference < 1e-4 for found in done)
    config = json.loads((tmp_path / "whole" / "export" / "timm" / "config.json").read_text())
    assert config["model_args"]["embed_dim"] == 32
    loaded = timm.create_model(f"local-dir:{tmp_path / 'whole' / 'export' / 'timm'}", pretrained=True).eval()
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded(x), ours(x))
