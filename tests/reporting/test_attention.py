"""Attention as pictures: colors in the map's order, the image kept inside the mask, files from the command."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfcluster import api
from selfcluster.cli import main
from selfcluster.data.sources import open_source
from selfcluster.models.backbones import make_backbone, save_backbone
from selfcluster.reporting.attention import AttentionPictures, colored, draw_attention, is_transformer


def test_more_attention_is_lighter():
    shades = colored(np.array([[0.1, 0.2], [0.5, 0.3]])).astype(int) @ [299, 587, 114]
    assert np.argsort(shades, axis=None).tolist() == [0, 1, 3, 2]
    assert len(np.unique(colored(np.ones((2, 2))))) == len(np.unique(colored(np.ones((1, 1))))), "a flat map is flat"


def test_the_mask_keeps_the_image_and_dims_the_rest(tmp_path):
    image = np.full((32, 32, 3), 200, np.uint8)
    mask = np.array([[True, False], [False, False]])
    files = draw_attention(image, np.random.default_rng(0).random((3, 2, 2)), mask, tmp_path / "new", "cat")
    assert [f.name for f in files] == ["cat-head-1.png", "cat-head-2.png", "cat-head-3.png", "cat-mask.png"]
    shown = np.asarray(Image.open(files[-1]))
    assert shown.shape == (224, 224, 3)
    assert (shown[:112, :112] == 200).all()
    assert (shown[112:] == 40).all()
    assert (shown[:112, 112:] == 40).all()


@pytest.fixture
def network(tmp_path):
    module = make_backbone("vit_tiny_patch4_32", channels=3, image_size=32, depth=1)
    save_backbone(tmp_path / "vit", module, (0.5,) * 3, (0.25,) * 3, 32)
    return tmp_path / "vit"


@pytest.fixture
def photos(tmp_path, pictures):
    files = [tmp_path / "a" / "cat.png", tmp_path / "b" / "cat.png", tmp_path / "b" / "dog.png"]
    for file, picture in zip(files, pictures, strict=False):
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(file)
    return [str(file) for file in files]


def test_the_command_writes_a_picture_a_head_and_the_mask(network, photos, tmp_path, capsys):
    assert (
        main(["attention", str(network), *photos, "--out", str(tmp_path / "out"), "--image-size", "48", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)["result"]
    assert result["heads"] == 3
    assert result["grid"] == [12, 12]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(
        f"{stem}-{part}.png" for stem in ("0-cat", "1-cat", "dog") for part in ("head-1", "head-2", "head-3", "mask")
    ), "files of one name do not overwrite each other"
    assert len(result["pictures"]) == 12


def test_pictures_of_a_run_lie_in_it(network, photos):
    result = api.attention(network, photos[2:])
    assert result["out"] == str(network / "attention")
    assert result["grid"] == [8, 8]


def test_what_it_refuses(network, photos, tmp_path, capsys):
    cnn = make_backbone("tiny_layout", channels=3, image_size=16)
    save_backbone(tmp_path / "cnn", cnn, (0.5,) * 3, (0.5,) * 3, 16)
    with pytest.raises(ValueError, match="attention maps need a vision transformer"):
        api.attention(tmp_path / "cnn", photos)
    with pytest.raises(ValueError, match="--share 0: must be above 0"):
        api.attention(network, photos, share=0)
    with pytest.raises(ValueError, match="divisible by patch size"):
        api.attention(network, photos, image_size=30)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        api.attention(network, [tmp_path / "text.png"])
    assert main(["attention", str(network)]) == 2
    nothing = tmp_path / "nothing"
    for refused in (["attention", "nosuch", photos[0]], ["figures", "nosuch"]):
        assert main([*refused, "--out", str(nothing)]) == 2
        assert not nothing.exists()


NETWORKS = """vit_tiny_patch16_224 deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
    vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_tiny_patch4_32 flexivit_small test_vit test_vit2
    vit_base_patch16_clip_224 vit_base_patch16_reg4_gap_256
    vit_base_patch16_siglip_224 vit_base_patch16_gap_224 vit_base_patch16_rope_224
    vit_relpos_small_patch16_224 vit_base_patch16_rpn_224 vit_tiny_r_s16_p8_224 vit_small_r26_s32_224
    vit_small_resnet50d_s16_224 vit_small_patch16_dinov3 vit_pe_core_tiny_patch16_384 vit_small_patch16_18x2_224
    xcit_nano_12_p16_224 levit_128s beit_base_patch16_224 eva02_tiny_patch14_224 resnet18 vitamin_small_224
    mobilevit_xxs convit_tiny"""


@pytest.mark.parametrize("name", NETWORKS.split())
def test_the_page_offers_attention_for_the_networks_that_have_it(name, tmp_path):
    import timm
    import torch

    from selfcluster.models.attention import class_maps, last_attention

    (tmp_path / "backbone.json").write_text(json.dumps({"model_name": name}))
    with torch.device("meta"):  # no weights
        module = timm.create_model(name)
        images = torch.zeros(1, *module.default_cfg["input_size"])
    try:
        class_maps(*last_attention(module, images))
    except ValueError:
        assert not is_transformer(tmp_path)
    else:
        assert is_transformer(tmp_path)


def test_a_run_without_an_export_shows_the_attention_of_its_newest_checkpoint(tiny, tmp_path, pictures):
    run = tmp_path / "run"
    tiny("dino", run, backbone="vit_tiny_patch2_16", epochs=1)
    assert is_transformer(run)
    exported = AttentionPictures(run).picture(lambda channels: pictures[0])
    (run / "backbone.json").unlink()
    (run / "backbone.safetensors").unlink()
    assert is_transformer(run)
    assert AttentionPictures(run).picture(lambda channels: pictures[0]) == exported
    shutil.rmtree(run / "checkpoints")
    assert not is_transformer(run)


def test_images_that_a_transformer_embedded_have_attention_without_an_export_too(network, tmp_path, photos):
    result = api.cluster(tmp_path / "b", model=str(network), k=2, out=tmp_path / "run", quiet=True)
    assert is_transformer(tmp_path / "run")
    picture = open_source(tmp_path / "b").read
    pixels = np.asarray(Image.open(io.BytesIO(picture(0))))
    exported = AttentionPictures(Path(result["run"])).picture(lambda channels: pixels)
    (tmp_path / "run/backbone.json").unlink()
    assert is_transformer(tmp_path / "run")
    assert AttentionPictures(tmp_path / "run").picture(lambda channels: pixels) == exported
