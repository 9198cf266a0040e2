"""Every family of torchvision and timm works, and the page says what does not."""

from dataclasses import replace

import pytest
from torch import nn

from benchmarks.backbones import exact
from benchmarks.backbones.examine import Finding, examine
from benchmarks.backbones.sources import Source, timm_source, torchvision_source
from benchmarks.backbones.table import as_markdown, works_but_for_split

timm = pytest.importorskip("timm")

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_small regnet_x_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_0 swin_t
    vgg11_bn vit_b_32
"""
TIMM = """
    beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_mini coat_tiny convit_tiny
    convmixer_1024_20_ks9_p14 cpubone_nano crossvit_tiny_240 csatv2 darknet17 cspnext_tiny
    davit_tiny deepseek_vit_412m deit_tiny_distilled_patch16_224 densenet121 dla34 dpn48b
    edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 efficientvit_b0
    efficientvit_m2 ese_vovnet19b_slim eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_a hgnet_tiny
    hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto inception_v4
    lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_e1 mixer_s32_224
    mobilenetv5_base mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nest_tiny nextvit_small
    nf_resnet26 pit_ti_224 poolformer_s12 caformer_s18 pvt_v2_b0 qwen3_vit_88m qwen3_vit_88m_enc
    rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2net50_48w_2s resnest14d resnetv2_18
    rexnet_100 samvit_base_patch16_224 selecsls42 shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
    test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet
    test_vit test_vit_relpos tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tnt_s_patch16_224
    tresnet_m twins_svt_small vgg11 visformer_tiny vit_small_resnet26d_224 vit_small_patch14_dinov2
    vitamin_small_224 volo_d1_224 xception41p xcit_nano_12_p16_224
"""


@pytest.fixture(scope="module")
def torchvision() -> Source:
    return torchvision_source()


@pytest.fixture(scope="module")
def of_timm() -> Source:
    return timm_source()


@pytest.mark.parametrize("name", TORCHVISION.split())
def test_every_family_of_torchvision_works(torchvision: Source, name: str) -> None:
    assert examine(torchvision, name, splits=False).problems == RIGHT


@pytest.mark.sweep
@pytest.mark.parametrize("name", TIMM.split())
def test_every_family_of_timm_works(of_timm: Source, name: str) -> None:
    if not timm.is_model(name):
        pytest.skip("this timm does not have it")
    assert examine(of_timm, name, splits=False).problems == RIGHT


RIGHT = {
    "built": "",
    "head": "",
    "num_features": "",
    "blocks in order": "",
    "forward and backward": "",
    "split": None,
    "same bits": None,
    "data config": "",
}
SPLIT = {"split": "", "same bits": ""}


@pytest.mark.parametrize("name", ["test_byobnet", "test_convnext", "test_nfnet", "test_vit"])
def test_the_halves_of_a_network_give_the_bits_of_the_whole(of_timm: Source, name: str) -> None:
    assert examine(of_timm, name).problems == RIGHT | SPLIT


def test_halves_that_give_other_bits_are_seen(
    of_timm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_from = exact.forward_from
    monkeypatch.setattr(
        exact, "forward_from", lambda *args, **options: forward_from(*args, **options) + 1e-6
    )
    finding = examine(of_timm, "test_vit")
    assert "`head`: " in (finding.problems["same bits"] or "")
    assert not works_but_for_split(finding)


def test_what_cannot_be_split_says_so_and_works(of_timm: Source) -> None:
    finding = examine(of_timm, "ghostnet_050")
    assert "GhostNet cannot be split at" in (finding.problems["split"] or "")
    assert works_but_for_split(finding)


def test_norms_of_several_exits_that_are_in_the_last_stage_are_seen(of_timm: Source) -> None:
    problems = examine(of_timm, "efficientvim_m1", splits=False).problems
    assert problems == RIGHT | {
        "blocks in order": "used after a part of the block behind: stages.1"
    }


def test_what_the_library_says_otherwise_is_found(of_timm: Source) -> None:
    wrong = replace(
        of_timm,
        own_num_features=lambda network: 65,
        own_data_config=lambda network, name: {"resize_size": 1},
    )
    problems = examine(wrong, "test_vit", splits=False).problems
    assert problems["num_features"] == "65 by the library, [64] when run"
    assert problems["data config"] == "{'resize_size': 168}, but the library has {'resize_size': 1}"
    assert problems["head"] == ""


def test_what_the_library_cannot_build_is_told_from_what_we_cannot(of_timm: Source) -> None:
    def build(name: str) -> nn.Module:
        raise RuntimeError("no such thing")

    broken = replace(of_timm, prefix="timm/not_a_", build=build, family_of=lambda name: "none")
    finding = examine(broken, "model")
    assert finding.cannot_be_built == "RuntimeError: no such thing"
    assert "timm has no model 'not_a_model'" in (finding.problems["built"] or "")
    assert not works_but_for_split(finding)


def test_the_page_counts_and_names_what_does_not_work() -> None:
    findings = [
        Finding("a1", "a", RIGHT | SPLIT, num_blocks=6),
        Finding("a2", "a", RIGHT | SPLIT | {"head": "logits of shape (2, 1)"}, num_blocks=8),
        Finding("b1", "b", RIGHT | {"split": "several tensors enter it"}, notes=["2 heads"]),
        Finding("c1", "c", {"built": "x"}, cannot_be_built="out of date"),
    ]
    page = as_markdown({"timm": findings})
    assert "**timm**: 2 of 3 names that can be built work (66.7%)" in page
    assert "2 can be split, 0 of which give other bits then" in page
    assert "| a | 2 | all | 1 of 2 | all | all | all | all | all | all | 6 to 8 |  |" in page
    row = "| b | 1 | all | all | all | all | all | 0 of 1 | nothing to compare | all |  | 2 heads |"
    assert row in page
    assert "* b, 1 of 1 names, split: several tensors enter it" in page
    assert "* `a2`: head: logits of shape (2, 1)" in page
    assert "* `c1`: the library cannot build it: out of date" in page
