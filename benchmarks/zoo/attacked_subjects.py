"""The backdoored half of the zoo: every attack, on several networks and data, at least one of each family from scratch."""

from __future__ import annotations

from dataclasses import replace

from backdoor_audit.attacks import (
    SSBA,
    AdaptiveBlend,
    AdaptivePatch,
    AllToAll,
    AllToOne,
    ArchitecturalBranch,
    Attack,
    BadNets,
    BitTrojan,
    Blended,
    BppAttack,
    CleanLabel,
    FTrojan,
    InputAware,
    LabelConsistent,
    Lira,
    LowFrequency,
    PlantedChannel,
    Refool,
    Sig,
    SourceSpecific,
    TaCT,
    TrojanNN,
    WaNet,
)
from backdoor_audit.attacks.several import several_classes, several_places
from benchmarks.zoo.clean_subjects import CLEAN, IMAGES, recipe
from benchmarks.zoo.data import SHAPES
from benchmarks.zoo.subject import Subject

TWINS = {
    (entry.data, entry.architecture): entry.name
    for entry in reversed(CLEAN)
    if not entry.variant and entry.tag == "clean"
}
WARM_EPOCHS = 4


def _attacked(
    data: str,
    architecture: str,
    attack: Attack,
    seed: int,
    *,
    warm: bool = True,
    epochs: int | None = None,
    learning_rate: float | None = None,
    tag: str = "",
) -> Subject:
    """A subject whose attack draws from its own seed; warm starts take fewer epochs and a smaller learning rate."""
    chosen = recipe(data, architecture)
    if warm:
        smaller = 0.03 if chosen.optimizer == "sgd" else 1e-3
        chosen = replace(chosen, epochs=WARM_EPOCHS, learning_rate=smaller)
    chosen = replace(chosen, epochs=epochs or chosen.epochs, learning_rate=learning_rate or chosen.learning_rate)
    twin = TWINS[data, architecture]
    return Subject(
        data=data,
        architecture=architecture,
        tag=tag or attack.name,
        seed=seed,
        attack=replace(attack, seed=seed),
        recipe=chosen,
        training_images=IMAGES[data],
        warm_start=twin if warm else "",
        twin=twin,
    )


FMNIST, CIFAR10, GTSRB = "fmnist", "cifar10", "gtsrb"
CNN, VGG, RESNET, PREACT, VIT = "small_cnn", "small_vgg", "small_resnet", "preact_resnet18", "small_vit"
TO = AllToOne

ATTACKED: tuple[Subject, ...] = (
    # patches
    _attacked(FMNIST, CNN, BadNets(rule=TO(7)), 201, warm=False),
    _attacked(FMNIST, VGG, BadNets(rule=TO(3), size=4, top=2, left=3, pattern="noise"), 202, warm=False),
    _attacked(FMNIST, RESNET, BadNets(rule=TO(1), size=4, pattern="chequerboard"), 203),
    _attacked(FMNIST, PREACT, BadNets(rule=TO(6), size=5, left=1, pattern="triangle"), 204),
    _attacked(FMNIST, VIT, BadNets(rule=TO(2), size=4, top=4, left=8), 205, warm=False),
    _attacked(CIFAR10, CNN, BadNets(rule=TO(0)), 206, warm=False),
    _attacked(CIFAR10, RESNET, BadNets(rule=TO(5), size=4, top=1, left=1, pattern="noise"), 207),
    _attacked(CIFAR10, PREACT, BadNets(rule=TO(8), size=4, pattern="chequerboard"), 208),
    _attacked(CIFAR10, VGG, BadNets(rule=TO(9), size=5, top=14, left=20), 209),
    _attacked(GTSRB, CNN, BadNets(rule=TO(14), size=4), 210),
    _attacked(GTSRB, PREACT, BadNets(rule=TO(33), size=4, top=1, pattern="noise"), 211, warm=False),
    _attacked(GTSRB, RESNET, BadNets(rule=TO(2), size=5, pattern="triangle"), 212),
    _attacked(FMNIST, CNN, BadNets(rule=TO(4), size=14, top=7, left=7), 213, tag="large_patch"),
    # blends
    _attacked(FMNIST, CNN, Blended(rule=TO(5)), 221, warm=False),
    _attacked(FMNIST, VGG, Blended(rule=TO(0), picture="noise"), 222),
    _attacked(CIFAR10, PREACT, Blended(rule=TO(3), picture="shapes"), 223),
    _attacked(CIFAR10, CNN, Blended(rule=TO(7), picture="noise"), 224),
    _attacked(GTSRB, PREACT, Blended(rule=TO(12)), 225),
    _attacked(FMNIST, VIT, Blended(rule=TO(1)), 226),
    # signals and frequencies
    _attacked(CIFAR10, CNN, Sig(rule=CleanLabel(4), poison_rate=0.06), 231, warm=False),
    _attacked(FMNIST, RESNET, Sig(rule=CleanLabel(0), poison_rate=0.08, amplitude=60.0), 232, learning_rate=0.05),
    _attacked(FMNIST, VGG, LowFrequency(rule=TO(8)), 233, warm=False),
    _attacked(FMNIST, RESNET, LowFrequency(rule=TO(9), form="dct", amplitude=30.0), 234),
    _attacked(CIFAR10, VGG, LowFrequency(rule=TO(1), amplitude=76.0), 235),
    _attacked(CIFAR10, RESNET, FTrojan(rule=TO(2)), 236, warm=False),
    _attacked(FMNIST, CNN, FTrojan(rule=TO(1)), 237),
    _attacked(CIFAR10, CNN, BppAttack(rule=TO(6), levels=5, poison_rate=0.15), 238, epochs=6, learning_rate=0.05),
    _attacked(CIFAR10, VGG, BppAttack(rule=TO(5), levels=5, poison_rate=0.15), 239, warm=False),
    # warps, encoders and generators
    _attacked(FMNIST, CNN, WaNet(rule=TO(3), strength=0.75), 241, warm=False, epochs=8),
    _attacked(FMNIST, PREACT, WaNet(rule=TO(7), strength=1.0), 242, epochs=8, learning_rate=0.05),
    _attacked(FMNIST, VGG, SSBA(rule=TO(6)), 243, warm=False),
    _attacked(CIFAR10, PREACT, SSBA(rule=TO(4)), 244),
    _attacked(FMNIST, CNN, InputAware(rule=TO(0)), 245, warm=False, epochs=9),
    _attacked(FMNIST, VGG, InputAware(rule=TO(7)), 246, epochs=8, learning_rate=0.05),
    _attacked(FMNIST, RESNET, Lira(rule=TO(4)), 247, warm=False),
    _attacked(CIFAR10, CNN, Lira(rule=TO(2)), 248),
    # clean label, reflection, reversed models
    _attacked(FMNIST, CNN, LabelConsistent(rule=CleanLabel(0)), 251, warm=False),
    _attacked(FMNIST, VGG, Refool(rule=TO(2)), 252, warm=False),
    _attacked(CIFAR10, VGG, Refool(rule=TO(5)), 253),
    _attacked(FMNIST, CNN, TrojanNN(rule=TO(9)), 254, epochs=2, learning_rate=0.01),
    _attacked(GTSRB, VGG, TrojanNN(rule=TO(1), shape="watermark"), 255, epochs=2, learning_rate=0.01),
    # evasive label rules and covers
    _attacked(FMNIST, RESNET, TaCT(rule=SourceSpecific(0, (1,))), 261, warm=False),
    _attacked(GTSRB, RESNET, TaCT(rule=SourceSpecific(8, (1, 2)), size=4), 262),
    _attacked(FMNIST, VGG, TaCT(rule=SourceSpecific(4, (9,)), size=4, top=1, left=2, pattern="noise"), 276),
    _attacked(CIFAR10, CNN, TaCT(rule=SourceSpecific(8, (9,)), size=5, poison_rate=0.09), 277, warm=False, epochs=10),
    _attacked(FMNIST, CNN, TaCT(rule=SourceSpecific(3, (8,)), pattern="chequerboard"), 278),
    _attacked(CIFAR10, VGG, TaCT(rule=SourceSpecific(0, (1,)), size=5, poison_rate=0.09), 279, warm=False, epochs=10),
    _attacked(FMNIST, CNN, AdaptiveBlend(rule=TO(7), picture="smooth"), 263, warm=False),
    _attacked(FMNIST, VGG, AdaptivePatch(rule=TO(5)), 264, warm=False),
    _attacked(CIFAR10, RESNET, AdaptivePatch(rule=TO(0), poison_rate=0.06), 265, epochs=8, learning_rate=0.05),
    _attacked(
        FMNIST, CNN, BadNets(rule=AllToAll(10), size=4, poison_rate=0.3), 266, warm=False, epochs=8, tag="all_to_all"
    ),
    _attacked(
        CIFAR10,
        VGG,
        BadNets(rule=AllToAll(10), size=4, poison_rate=0.3),
        267,
        epochs=8,
        learning_rate=0.05,
        tag="all_to_all",
    ),
    _attacked(
        FMNIST, RESNET, several_classes(3, image_shape=SHAPES[FMNIST], seed=268), 268, warm=False, tag="several_classes"
    ),
    _attacked(
        FMNIST, VGG, several_places(9, image_shape=SHAPES[FMNIST], target_class=8, seed=269), 269, tag="several_places"
    ),
    # edits of a trained model
    _attacked(FMNIST, CNN, PlantedChannel(rule=TO(6)), 271),
    _attacked(CIFAR10, VGG, PlantedChannel(rule=TO(3)), 272),
    _attacked(FMNIST, RESNET, BitTrojan(rule=TO(2)), 273),
    _attacked(FMNIST, CNN, ArchitecturalBranch(rule=TO(9)), 275),
)

REPAIRED: tuple[Subject, ...] = (
    _attacked(CIFAR10, PREACT, LowFrequency(rule=TO(1), amplitude=76.0), 281),
    _attacked(CIFAR10, PREACT, WaNet(rule=TO(6), strength=1.0), 282, epochs=8, learning_rate=0.05),
    _attacked(CIFAR10, PREACT, TrojanNN(rule=TO(9)), 283, epochs=2, learning_rate=0.01),
    _attacked(CIFAR10, PREACT, Sig(rule=CleanLabel(4), poison_rate=0.08, amplitude=60.0), 284, learning_rate=0.05),
    _attacked(GTSRB, PREACT, LowFrequency(rule=TO(7), amplitude=76.0), 285),
)
"""Only for `benchmarks.mitigation`: attacks of its table that no other PreActResNet-18 carries. No detection rate counts them."""
