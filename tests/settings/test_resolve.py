"""Who decides: flag over file over recipe over paper; and what makes no sense is refused with the way out."""

import re

import pytest

from selfcluster.methods import NAMES
from selfcluster.settings.files import read_settings
from selfcluster.settings.imagenet import VARIANTS
from selfcluster.settings.options import options_for
from selfcluster.settings.recipes import RECIPES, DataSummary, warning_from_nothing
from selfcluster.settings.resolve import paper_values, resolve
from selfcluster.settings.schema import read_schema
from selfcluster.views.augmentations import AUGMENTATIONS

PHOTOS = DataSummary(50_000, 300, 3, gpu=True)
DIGITS = DataSummary(1797, 8, 1)
SMALL = DataSummary(50_000, 32, 3)
FOLDER = DataSummary(5_000, 600, 3)


def test_order_of_authority():
    assert resolve("swav", PHOTOS, recipe="paper").config["num_prototypes"] == 3000
    auto = resolve("swav", PHOTOS).config["num_prototypes"]
    assert auto == 220  # the square root of 50,000, to tens
    file = {"num_prototypes": 70, "epsilon": 0.03}
    assert resolve("swav", PHOTOS, config_file=file).config["num_prototypes"] == 70
    both = resolve("swav", PHOTOS, {"num_prototypes": 60}, file).config
    assert (both["num_prototypes"], both["epsilon"]) == (60, 0.03)


@pytest.mark.parametrize("method", NAMES)
def test_the_help_says_of_each_value_that_auto_may_choose_another(method):
    schema = read_schema(method)
    marked = {name for name, option in options_for(schema).items() if option.auto} | schema.small.keys()
    extra = {"teacher": "starter"} if method == "clusterfit" else {}
    start = {"init": "starter"}
    paper = {name: option.default for name, option in options_for(schema).items()} | paper_values(schema)
    for facts, given in ((PHOTOS, extra), (DIGITS, extra), (SMALL, extra), (FOLDER, extra), (FOLDER, extra | start)):
        auto = resolve(method, facts, given).config
        differ = {name for name, value in auto.items() if value != paper.get(name, value)}
        assert differ <= marked | {"channels", *given}


def test_autos_rate_and_decay_are_for_the_optimizer_that_the_user_names():
    expected = (("adamw", 1e-3, 1e-4), ("sgd", 0.06, 5e-4), ("larc", 0.3, 1e-6), ("lars", 0.3, 1e-6))
    for optimizer, rate, decay in expected:
        config = resolve("byol", DataSummary(10_000, 32, 3), {"optimizer": optimizer}).config
        assert (config["learning_rate"], config["weight_decay"]) == (rate, decay)
        assert config["final_learning_rate"] == rate / 1000
    said = {"optimizer": "larc", "learning_rate": 0.1}
    assert resolve("byol", DataSummary(10_000, 32, 3), said).config["learning_rate"] == 0.1


@pytest.mark.parametrize("method", NAMES)
def test_long_runs_on_photographs_are_optimized_as_in_the_paper(method):
    photos = DataSummary(1_281_167, 375, 3, gpu=True)
    paper, auto = (
        resolve(method, photos, {"batch_size": 256, "sobel": False}, recipe=r).config for r in ("paper", "auto")
    )
    for name in ("optimizer", "learning_rate", "weight_decay", "final_weight_decay", "global_scale", "local_crops"):
        assert auto[name] == paper[name], name


def test_the_small_recipe_is_the_budget_of_the_table_of_all_methods():
    cifar = DataSummary(10_000, 32, 3)
    small = resolve("simclr", cifar, recipe="small").config
    said = {"backbone": "resnet18_small_w25", "image_size": 24, "epochs": 7.0}  # benchmarks/reproduce.py
    assert small == resolve("simclr", cifar, said).config


@pytest.mark.parametrize("side", [16, 32, 64, 300])
def test_small_views_are_small(side):
    config = resolve("dino", DataSummary(10_000, side, 3), {"local_crops": 4}).config
    assert 0.3 < config["local_size"] / config["image_size"] <= 0.5
    given = {"local_crops": 4, "image_size": 32, "local_size": 32}
    with pytest.raises(ValueError, match="--local-size 32: small views must be smaller"):
        resolve("dino", DataSummary(10_000, side, 3), given)


def test_the_papers_rates_scale_with_the_batch_and_the_users_do_not():
    config = resolve("swav", PHOTOS, {"batch_size": 512}, recipe="paper").config
    assert config["learning_rate"] == pytest.approx(0.6)
    assert config["final_learning_rate"] == pytest.approx(0.0006)
    full = resolve("swav", DataSummary(1_281_167, 400, 3, True), recipe="paper").config
    assert full["learning_rate"] == pytest.approx(4.8)
    assert full["warmup_learning_rate"] == pytest.approx(0.3)
    assert resolve("swav", PHOTOS, {"learning_rate": 0.1}, recipe="paper").config["learning_rate"] == 0.1


def test_auto_gives_a_reason_for_each_choice_and_none_for_the_users():
    resolved = resolve("swav", DIGITS, {"epochs": 7})
    assert resolved.config["epochs"] == 7
    assert "epochs" not in resolved.reasons
    assert resolved.config["backbone"] == "tiny_layout"
    assert resolved.config["augment"] == "layout"
    assert resolved.config["channels"] == 1
    assert all(resolved.reasons.values())
    assert "the number of images (1797)" in resolved.reasons["num_prototypes"]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("facts", [PHOTOS, DIGITS, DataSummary(60, 64, 3), DataSummary(5398, 224, 3)], ids=str)
def test_every_recipe_makes_a_run_or_says_why_not(method, recipe, facts):
    if recipe in VARIANTS and VARIANTS[recipe][0] != method:
        with pytest.raises(ValueError, match=f"--recipe {recipe} is a recipe of {VARIANTS[recipe][0]}, not of"):
            resolve(method, facts, recipe=recipe)
        return
    whole = resolve(method, DataSummary(1_281_167, facts.side, facts.channels, facts.gpu), recipe=recipe).config
    directions = method == "dino"  # its prototypes may outnumber the images
    needed = max(whole["batch_size"], 0 if directions else whole.get("num_prototypes", 0))
    fixed = recipe == "paper" or recipe in VARIANTS  # `cifar` on so few images takes auto's values
    if fixed and facts.num_images < needed:  # made for more images than there are
        with pytest.raises(ValueError, match=str(facts.num_images)):
            resolve(method, facts, recipe=recipe)
        return
    config = resolve(method, facts, recipe=recipe).config
    assert config["batch_size"] <= facts.num_images
    assert directions or config.get("num_prototypes", 0) <= facts.num_images
    if config["local_crops"]:
        assert config["local_size"] < config["image_size"]
    # a configuration is itself a valid --config
    assert (
        resolve(method, facts, config_file=read_settings({**config, "method": method}), recipe="paper").config == config
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"num_prototype": 3}, "did you mean num_prototypes"),
        ({"epochs": -1}, "--epochs -1: must be 0 or more"),
        ({"epochs": 0}, "--epochs 0.0: must be above 0"),
        ({"epochs": float("inf")}, "--epochs inf: must be a finite number"),
        ({"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        ({"learning_rate": -1}, "--learning-rate -1: must be 0 or more"),
        ({"global_scale": (0, 2)}, "--global-scale 0 2: must be 1 or less"),
        ({"epochs": "many"}, "--epochs many: expects a number"),
        ({"optimizer": "adam"}, "did you mean adamw"),
        ({"batch_size": 100_000}, "--batch-size 100000 is more than the 50000 images; use --batch-size 12500"),
        ({"num_prototypes": 1}, "--num-prototypes 1: must be 2 or more"),
        ({"global_scale": (0.5, 0.1)}, "expects two numbers, the smaller first"),
        ({"milestones": (3, 4)}, "no effect under --schedule cosine"),
        ({"schedule": "step"}, "needs --milestones"),
        ({"channels": 4}, "--channels 4: must be 1"),
        ({"batch_size": 2.5}, "--batch-size 2.5: expects a whole number"),
        ({"global_crops": 1}, "--global-crops 1: swav compares two full views"),
        ({"accumulate": 2}, "several small batches do not equal a large one"),
    ],
)
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        resolve("swav", PHOTOS, given)


def test_super_classes_share_a_batch_and_weighted_batches_are_whole():
    with pytest.raises(ValueError, match=r"--batch-size 12 .* each of 8 super-classes .*; use --batch-size 8"):
        resolve("deepercluster", PHOTOS, {"batch_size": 12})
    with pytest.raises(ValueError, match="--accumulate 2: --weighting inverse divides by the weights of a whole batch"):
        resolve("deepcluster", PHOTOS, {"weighting": "inverse", "accumulate": 2, "batch_size": 64})


def test_clusters_of_images_are_no_more_than_the_images_they_are_made_of():
    with pytest.raises(ValueError, match="--num-prototypes 60000: must be from 2 to 50000, the number of images"):
        resolve("deepcluster", PHOTOS, {"num_prototypes": 60_000})
    with pytest.raises(ValueError, match="from 2 to 64, the number of images in the complete batches of an epoch"):
        resolve("deepcluster_v2", DataSummary(100, 32, 3), {"num_prototypes": 80, "batch_size": 64})
    assert resolve("dino", PHOTOS, {"num_prototypes": 65_536}).config["num_prototypes"] == 65_536


def test_a_config_of_another_method_is_named():
    with pytest.raises(
        ValueError, match="belongs to another method: dino has no setting epsilon, queue_length; remove those lines"
    ):
        resolve("dino", PHOTOS, config_file={"epsilon": 0.05, "queue_length": 0, "epochs": 3})


def test_unknown_recipe_and_method():
    with pytest.raises(ValueError, match="there are auto, paper, small, cifar"):
        resolve("swav", PHOTOS, recipe="fast")
    with pytest.raises(KeyError, match="did you mean deepcluster_v2"):
        resolve("deepcluster_v3", PHOTOS)


def test_a_config_that_is_none(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- a list")
    with pytest.raises(ValueError, match="not a mapping"):
        read_settings(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("odc", {"centroids_every": 0}, "--centroids-every 0: must be 1 or more"),
        ("odc", {"long_tail": 0.01}, "--long-tail 0.01: must be 1 or more"),
        ("simclr", {"hidden": 0}, "--hidden 0: must be 1 or more"),
        ("deepcluster_v2", {"num_heads": 0}, "--num-heads 0: must be 1 or more"),
        ("npid", {"num_negatives": -1}, "--num-negatives -1: must be 0 or more"),
        ("byol", {"teacher_momentum": 99.6}, "--teacher-momentum 99.6: must be 1 or less"),
        ("dino", {"temperature": 0.0}, "--temperature 0: must be 0.0001 or more"),
    ],
)
def test_a_methods_own_settings_have_bounds(method, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(method, PHOTOS, given)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (
            "dino",
            {"teacher_rule": "copy", "teacher_momentum": 0.5},
            "--teacher-momentum has no effect under --teacher-rule",
        ),
        (
            "dino",
            {"centering": "sinkhorn", "center_momentum": 0.5},
            "has no effect under --centering sinkhorn; leave one",
        ),
        (
            "dino",
            {"bottleneck": False, "dim": 64},
            "--dim has no effect under --no-bottleneck; leave one of the two out",
        ),
        ("dino", {"loss": "mse", "teacher_temperature": 0.02}, "--teacher-temperature has no effect under --loss mse"),
        ("byol", {"center_momentum": 0.5}, "--center-momentum has no effect under --centering none"),
        ("npid", {"num_negatives": 0, "exclude_self": True}, "--exclude-self has no effect under --num-negatives 0"),
        ("odc", {"optimizer": "adamw", "head_momentum": 0.9}, "--head-momentum has no effect under --optimizer adamw"),
        ("deepcluster", {"clustering": "pic", "split": "random"}, "--split has no effect under --clustering pic"),
        ("deepcluster", {"max_clusters": 50}, "--max-clusters has no effect under --clustering kmeans"),
        (
            "deepcluster",
            {"clustering": "pic", "num_prototypes": 9},
            "--num-prototypes has no effect under --clustering pic",
        ),
        ("clusterfit", {"distill_temperature": 4.0}, "--distill-temperature has no effect under --target kmeans"),
        ("clusterfit", {"target": "regress", "teacher_pca": 8}, "--teacher-pca has no effect under --target regress"),
        (
            "clusterfit",
            {"kmeans_sample_iterations": 3},
            "--kmeans-sample-iterations has no effect without --kmeans-sample",
        ),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(method, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve(method, PHOTOS, given)
    resolve(method, PHOTOS, config_file=given)  # a run's own config.yaml holds every setting


@pytest.mark.parametrize("given", [{"centering": "sinkhorn"}, {"centering": "softmax"}, {"loss": "infonce"}])
def test_small_batches_are_not_accumulated_where_images_are_looked_at_together(given):
    assert resolve("dino", PHOTOS, {"accumulate": 4}).config["accumulate"] == 4
    with pytest.raises(ValueError, match="--accumulate 4: dino compares the images of a batch"):
        resolve("dino", PHOTOS, {"accumulate": 4} | given)


def test_a_teacher_may_have_temperature_0():
    assert resolve("dino", PHOTOS, {"teacher_temperature": 0.0}).config["teacher_temperature"] == 0


def test_no_head_and_no_queue_are_settings_where_their_help_says_so():
    assert resolve("swav", PHOTOS, {"hidden": 0, "queue_length": 0}).config["hidden"] == 0


def test_the_number_of_clusters_is_bounded_only_where_it_is_used():
    resolve("deepcluster", PHOTOS, {"clustering": "pic"}, {"num_prototypes": 10**6})
    with pytest.raises(ValueError, match="--num-prototypes 1000000"):
        resolve("deepcluster", PHOTOS, {"num_prototypes": 10**6})


def test_long_runs_of_a_method_whose_rate_is_constant_keep_it():
    assert resolve("deepcluster", DataSummary(1_281_167, 400, 3, True)).config["schedule"] == "constant"
    assert resolve("rotnet", DataSummary(1_281_167, 400, 3, True)).config["schedule"] == "cosine"


def test_a_short_runs_queue_holds_no_image_twice():
    assert resolve("moco_v2", DataSummary(1000, 32, 3, False)).config["queue_length"] == 1000
    assert resolve("moco_v2", DataSummary(10_000, 32, 3, False)).config["queue_length"] == 4096


def test_auto_is_gentle_with_a_start_network():
    photos = DataSummary(600, 300, 3, start_size=96)
    for method in ("swav", "dino", "deepcluster_v2", "simclr", "byol"):
        config = resolve(method, photos, {"init": "starter", "backbone": "resnet18"}).config
        assert (config["image_size"], config["freeze_norm"], config["freeze_layers"]) == (96, "statistics", 0.5)
        assert (config["optimizer"], config["learning_rate"], config["epochs"]) == ("adamw", 1e-4, 2.0)
    many = resolve("byol", DataSummary(50_000, 300, 3, gpu=True, start_size=224), {"init": "starter"}).config
    assert (many["freeze_layers"], many["freeze_norm"]) == (0.0, "statistics")
    assert resolve("byol", photos, {"init": "starter", "freeze_norm": "no"}).config["freeze_norm"] == "no"


def test_few_photographs_from_nothing_are_warned_about():
    schema = read_schema("swav")
    text = warning_from_nothing(schema, DataSummary(5398, 224, 3), "auto", "photos/")
    assert text is not None
    assert "selfcluster train swav photos/ --init starter" in text
    for facts in (DataSummary(5398, 224, 3, start_size=224), DataSummary(5398, 28, 1), DataSummary(50_000, 224, 3)):
        assert warning_from_nothing(schema, facts, "auto", "photos/") is None
    assert warning_from_nothing(schema, DataSummary(5398, 224, 3), "paper", "photos/") is None


def test_cifar_has_solo_learns_values_and_scales_them_in_words():
    cifar = DataSummary(50_000, 32, 3)
    expected = {"swav": 0.6, "deepcluster_v2": 0.6, "dino": 0.3, "byol": 1.0, "simclr": 0.4, "moco_v2": 0.3}
    for method, rate in expected.items():
        config = resolve(method, cifar, recipe="cifar").config
        assert (config["learning_rate"], config["epochs"], config["batch_size"]) == (rate, 1000, 256)
        lars = ("larc", 0.02, True, True)
        names = ("optimizer", "trust_coefficient", "clip_rate", "exclude_flat")
        assert method == "moco_v2" or tuple(config[name] for name in names) == lars
        half = resolve(method, cifar, {"batch_size": 128}, recipe="cifar")
        assert half.config["learning_rate"] == pytest.approx(rate / 2)
        assert "per 256 images, scaled to the batch size of 128" in half.reasons["learning_rate"]
    assert resolve("rotnet", cifar, recipe="cifar").config["backbone"] == "resnet18_small"


def of_imagenet(method: str, recipe: str, **given):
    return resolve(method, DataSummary(1_281_167, 400, 3, True), given, recipe=recipe).config


def test_swav_in_batches_of_256_has_the_papers_rates_and_queue():
    config = of_imagenet("swav", "swav_256")
    assert (config["batch_size"], config["learning_rate"], config["final_learning_rate"]) == (256, 0.6, 0.0006)
    assert (config["warmup_epochs"], config["queue_length"], config["queue_from_epoch"]) == (0, 3840, 15)
    assert (config["local_crops"], config["global_scale"], config["num_prototypes"]) == (6, (0.14, 1.0), 3000)
    # twice what scaling the main run's 4.8 for 4,096 images gives
    assert of_imagenet("swav", "paper", batch_size=256)["learning_rate"] == pytest.approx(0.3)
    assert of_imagenet("swav", "swav_256", batch_size=128)["learning_rate"] == pytest.approx(0.3)


def test_deepercluster_on_imagenet_keeps_its_rate_at_the_smaller_batch():
    config = of_imagenet("deepercluster", "deepercluster_imagenet")
    assert (config["batch_size"], config["learning_rate"], config["num_prototypes"]) == (748, 0.1, 10_000)
    assert (config["reassign_epochs"], config["num_super_clusters"], config["sobel"]) == (5, 1, True)
    scaled = of_imagenet("deepercluster", "paper", batch_size=752)["learning_rate"]
    assert scaled == pytest.approx(0.1 * 752 / 3072)


def test_dino_on_a_convolutional_network_is_the_released_command():
    config = of_imagenet("dino", "dino_resnet50")
    assert (config["optimizer"], config["learning_rate"] * 256 / config["batch_size"]) == ("sgd", pytest.approx(0.03))
    assert (config["weight_decay"], config["final_weight_decay"]) == (1e-4, None)
    assert (config["global_scale"], config["local_scale"]) == ((0.14, 1.0), (0.05, 0.14))


def test_rotnet_of_the_deepercluster_paper():
    config = of_imagenet("rotnet", "rotnet_vgg16")
    assert (config["backbone"], config["network_dropout"], config["dropout"]) == ("deepcluster_vgg16", 0.3, 0.0)
    assert (config["batch_size"], config["learning_rate"], config["weight_decay"]) == (512, 0.05, 1e-5)
    with pytest.raises(ValueError, match=r"--network-dropout 0\.3: resnet50 has no dropout inside"):
        of_imagenet("rotnet", "paper", network_dropout=0.3)


def test_deepcluster_as_the_thesis_words_it():
    config = of_imagenet("deepcluster", "deepcluster_thesis")
    assert (config["head_momentum"], config["momentum"], config["split"]) == (0.9, 0.9, "random")
    assert of_imagenet("deepcluster", "paper")["head_momentum"] == 0


# peers' table of solo-learn's configurations for CIFAR: what each row states beyond the rate
PUBLISHED = {
    "swav": {"weight_decay": 1e-6, "hidden": 2048, "dim": 128, "num_prototypes": 3000, "queue_length": 3840,
             "queue_from_epoch": 50, "freeze_epochs": 2, "temperature": 0.1},
    "deepcluster_v2": {"weight_decay": 1e-6, "hidden": 2048, "dim": 128, "num_prototypes": 3000, "num_heads": 3,
                       "temperature": 0.1, "kmeans_iterations": 10, "final_learning_rate": 6e-4, "warmup_epochs": 11,
                       "warmup_learning_rate": 0},
    "dino": {"weight_decay": 1e-6, "hidden": 2048, "dim": 256, "num_prototypes": 4096, "teacher_momentum": 0.9995},
    "byol": {"weight_decay": 1e-5, "hidden": 4096, "dim": 256, "teacher_momentum": 0.99},
    "simclr": {"weight_decay": 1e-4, "hidden": 2048, "dim": 256, "temperature": 0.2},
    "moco_v2": {"weight_decay": 1e-4, "optimizer": "sgd", "hidden": 2048, "dim": 256, "queue_length": 32768,
                "temperature": 0.2, "teacher_momentum": 0.99},
}  # fmt: skip
# jitter and blur probability of the first view, solarization of both
SYMMETRIC = ((0.8, 0.8, 0.8, 0.2), 0.5, (0.0, 0.0))
WEAK = ((0.4, 0.4, 0.4, 0.1), 0.5, (0.0, 0.0))
ASYMMETRIC = ((0.4, 0.4, 0.2, 0.1), 0.0, (0.0, 0.2))
VIEWS = {"swav": SYMMETRIC, "deepcluster_v2": SYMMETRIC, "simclr": SYMMETRIC, "moco_v2": WEAK}
VIEWS |= {"dino": ASYMMETRIC, "byol": ASYMMETRIC}


@pytest.mark.parametrize("method", PUBLISHED)
def test_cifar_has_the_published_row_of_each_method(method):
    config = resolve(method, DataSummary(50_000, 32, 3), recipe="cifar").config
    assert {name: config[name] for name in PUBLISHED[method]} == PUBLISHED[method]
    assert (config["backbone"], tuple(config["global_scale"])) == ("resnet18_small", (0.08, 1.0))
    first, second, _ = AUGMENTATIONS[config["augment"]]()
    views = (first.color.jitter, first.color.blur_p, (first.color.solarize_p, second.color.solarize_p))
    assert views == VIEWS[method]
    assert {(c.jitter_p, c.gray_p, c.blur_p) for c in (first.color, second.color)} == {(0.8, 0.2, views[1])}


# the optimizer's half of the same table: the rate, its end, the epochs of warm-up and the rate that these begin with
PUBLISHED_RATES = {
    "swav": (0.6, 6e-4, 11, 0),
    "deepcluster_v2": (0.6, 6e-4, 11, 0),
    "dino": (0.3, 0, 10, 3e-5),
    "byol": (1.0, 0, 10, 3e-5),
    "simclr": (0.4, 0, 10, 3e-5),
    "moco_v2": (0.3, 0, 10, 3e-5),
}


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("given", [{}, {"epochs": 200.0}], ids=["1000 epochs", "200 epochs"])
def test_long_cifar_runs_are_published_value_by_value(method, given):
    config = resolve(method, DataSummary(50_000, 32, 3), given, recipe="cifar").config
    assert {name: config[name] for name in PUBLISHED[method]} == PUBLISHED[method]
    rates = ("learning_rate", "final_learning_rate", "warmup_epochs", "warmup_learning_rate")
    assert tuple(config[name] for name in rates) == PUBLISHED_RATES[method]
    assert (config["schedule"], config["milestones"], config["final_weight_decay"]) == ("cosine", (), None)
    assert (config["momentum"], config["batch_size"], config["clip_each"]) == (0.9, 256, None)
    views = {"image_size": 32, "global_crops": 2, "local_crops": 0, "global_scale": (0.08, 1.0)}
    assert {name: config[name] for name in views} == views


@pytest.mark.parametrize("method", NAMES)
def test_a_short_cifar_run_is_autos_on_the_cifar_network(method):
    facts, given = DataSummary(10_000, 32, 3), {"epochs": 20.0}
    short = resolve(method, facts, given, recipe="cifar")
    assert short.config == resolve(method, facts, {**given, "backbone": "resnet18_small", "local_crops": 0}).config
    if method in PUBLISHED:
        assert "200,000 images seen are too few for the published values" in short.reasons["backbone"]
        assert short.reasons["learning_rate"].startswith("as auto: ")
    # what the user sets decides, whatever the length
    assert resolve(method, facts, {**given, "learning_rate": 0.3}, recipe="cifar").config["learning_rate"] == 0.3


@pytest.mark.parametrize("method", PUBLISHED)
def test_cifar_keeps_the_published_values_from_five_million_images_on(method):
    def rate(num_images, **given):
        config = resolve(method, DataSummary(num_images, 32, 3), given, recipe="cifar").config
        return config["learning_rate"], config["augment"], config["batch_size"]

    published = rate(50_000)
    assert published[1:] == (
        {"moco_v2": "moco_v2", "dino": "asymmetric", "byol": "asymmetric"}.get(method, "swav"),
        256,
    )
    for num_images, given in (
        (50_000, {"epochs": 200.0}),
        (50_000, {"epochs": 100.0}),
        (5_000, {}),  # 1,000 epochs
        (50_000, {"images_seen": 5_000_000}),
    ):
        assert rate(num_images, **given) == published
    for num_images, given in ((50_000, {"epochs": 99.0}), (4_999, {}), (50_000, {"images_seen": 4_999_999})):
        assert rate(num_images, **given)[1:] == ("gentle", 64 if num_images < 5000 else 128)


def test_a_short_cifar_run_of_few_images_has_clusters_and_batches_that_fit():
    config = resolve("swav", DataSummary(600, 32, 3), {"images_seen": 12_000}, recipe="cifar").config
    assert (config["epochs"], config["warmup_epochs"]) == (20, 1)  # a twentieth of the run
    assert (config["batch_size"], config["num_prototypes"]) == (32, 20)
