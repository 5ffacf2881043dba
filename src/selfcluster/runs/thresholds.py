"""Where a run counts as collapsed; training warns by these, and the page judges by them."""

AT_CHANCE = 0.01  # share of the chance level within which a loss counts as at it
THIN = 0.02  # RankMe below this share of the features' dimension: they use few directions
GIANT = 0.5  # share of the images in one cluster that is worth a look
FEW_EFFECTIVE = 0.1  # effective clusters below this share of all are worth a look
