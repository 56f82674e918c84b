"""The config keys of the methods: a node for each loss and each calibration, under ``MODEL.LONG_TAIL``."""

from detectron2.config import CfgNode as CN


def add_loss_settings(node: CN) -> None:
    """Add one node for each registered loss; a key is the constructor argument's name in upper case."""
    node.SOFTMAX = CN()
    # A background column (detection), or none (plain classification).
    node.SOFTMAX.BACKGROUND = True

    node.SIGMOID = CN()
    # Probability of each class before training; sets the initial bias of the classifier.
    node.SIGMOID.PRIOR = 0.001

    node.EQL = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.EQL.LAMBDA = 1.76e-3
    # Choose LAMBDA from the counts, so that tail classes have about this share of the image counts (EQL: 0.09 on LVIS
    # v0.5); 0 for LAMBDA as it is.
    node.EQL.TAIL_RATIO = 0.0
    # T(f): "threshold" (uses LAMBDA), "exponential" or "gompertz".
    node.EQL.WEIGHT_FUNCTION = "threshold"
    # a and n of the exponential decay 1 - (a f)^n.
    node.EQL.EXPONENTIAL_A = 400.0
    node.EQL.EXPONENTIAL_N = 2.0
    # a, b and c of the Gompertz decay 1 - a exp(-b exp(-c f)).
    node.EQL.GOMPERTZ_A = 1.0
    node.EQL.GOMPERTZ_B = 80.0
    node.EQL.GOMPERTZ_C = 3000.0
    # E(r): background regions keep discouraging tail classes. False drops E(r) (Table 4).
    node.EQL.EXCLUDE_BACKGROUND = True
    # Classes in the positive or negative set of a region's image keep their full weight.
    node.EQL.IMAGE_LEVEL_EXEMPTION = True
    # Probability of each class before training.
    node.EQL.PRIOR = 0.001

    node.EQL_V2 = CN()
    # Slope of f(g) = sigmoid(gamma (g - mu)), which maps a class's gradient ratio g to the weight of its negatives.
    node.EQL_V2.GAMMA = 12.0
    # Gradient ratio at which f is one half.
    node.EQL_V2.MU = 0.8
    # How much more the positives of a class with gradient ratio 0 weigh; 0 re-weights the negatives alone.
    node.EQL_V2.ALPHA = 4.0
    # Negatives weigh f(g). False: they weigh 1, and the positives alone are re-weighted.
    node.EQL_V2.REWEIGHT_NEGATIVES = True
    # Train the extra, category-agnostic column.
    node.EQL_V2.CATEGORY_AGNOSTIC = True
    # Multiply the scores by one minus the probability of the extra column.
    node.EQL_V2.CATEGORY_AGNOSTIC_TEST = True
    # Probability of each column before training.
    node.EQL_V2.PRIOR = 0.001

    node.SOFTMAX_EQL = CN()
    # Exponent of the accumulated positive gradient that scales each class in the softmax.
    node.SOFTMAX_EQL.PI = 1.0
    # "v1" (the paper) or "v2" (the authors' code has it too).
    node.SOFTMAX_EQL.FORM = "v1"
    # A background column (detection), or none (plain classification).
    node.SOFTMAX_EQL.BACKGROUND = True

    node.SEQL = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.SEQL.LAMBDA = 1.76e-3
    # Choose LAMBDA from the counts, so that tail classes have about this share of the image counts (EQL: 0.09 on LVIS
    # v0.5); 0 for LAMBDA as it is.
    node.SEQL.TAIL_RATIO = 0.0
    # Probability that a tail class is left out of the softmax of another class's region.
    node.SEQL.GAMMA = 0.95
    # Background regions leave no class out.
    node.SEQL.EXCLUDE_BACKGROUND = True
    # A background column (detection), or none (plain classification).
    node.SEQL.BACKGROUND = True
    # Seed of the random draws.
    node.SEQL.SEED = 0

    node.ACSL = CN()
    # Probability from which a class is discouraged by a region of another class.
    node.ACSL.XI = 0.7
    # Background regions discourage by the three shares below (the released code). False: by XI, as in the formula.
    node.ACSL.SAMPLE_BACKGROUND = True
    # Share of the background regions, drawn at random, that discourage rare classes.
    node.ACSL.RARE_SHARE = 0.01
    # The same for common classes.
    node.ACSL.COMMON_SHARE = 0.1
    # The same for frequent classes.
    node.ACSL.FREQUENT_SHARE = 1.0
    # Probability of each column before training.
    node.ACSL.PRIOR = 0.01
    # Seed of the random draws.
    node.ACSL.SEED = 0

    node.BAGS = CN()
    # Training instance counts at which a new group of classes begins.
    node.BAGS.GROUP_BOUNDS = (10, 100, 1000)
    # Regions of other classes that a group keeps for each region of its own, at random.
    node.BAGS.BETA = 8.0
    # Seed of the random draws.
    node.BAGS.SEED = 0

    node.EFL = CN()
    # Focusing parameter of a class whose gradients are balanced.
    node.EFL.GAMMA_B = 2.0
    # Focusing parameter that a class with gradient ratio 0 has on top.
    node.EFL.SCALE = 8.0
    # Weight of positives; negatives have one minus this.
    node.EFL.ALPHA = 0.25
    # Probability of each class before training.
    node.EFL.PRIOR = 0.001

    node.EQFL = CN()
    # Focusing parameter of a class whose gradients are balanced.
    node.EQFL.GAMMA_B = 2.0
    # Focusing parameter that a class with gradient ratio 0 has on top.
    node.EQFL.SCALE = 8.0
    # Probability of each class before training.
    node.EQFL.PRIOR = 0.001

    node.CLASS_BALANCED = CN()
    # Weights are (1 - beta) / (1 - beta^instances), divided by their mean.
    node.CLASS_BALANCED.BETA = 0.999
    # Least weight of a class; 0 for no bound.
    node.CLASS_BALANCED.MIN_WEIGHT = 0.1
    # Largest weight of a class; .inf for no bound.
    node.CLASS_BALANCED.MAX_WEIGHT = 5.0
    # A background column (detection), or none (plain classification).
    node.CLASS_BALANCED.BACKGROUND = True

    node.INVERSE_FREQUENCY = CN()
    # Weights are instances^-power, divided by their mean; 0.5 for the square root.
    node.INVERSE_FREQUENCY.POWER = 1.0
    # Least weight of a class; 0 for no bound.
    node.INVERSE_FREQUENCY.MIN_WEIGHT = 0.1
    # Largest weight of a class; .inf for no bound.
    node.INVERSE_FREQUENCY.MAX_WEIGHT = 5.0
    # A background column (detection), or none (plain classification).
    node.INVERSE_FREQUENCY.BACKGROUND = True

    node.FOCAL = CN()
    # Focusing parameter.
    node.FOCAL.GAMMA = 2.0
    # Weight of positives; negatives have one minus this.
    node.FOCAL.ALPHA = 0.25
    # Probability of each class before training.
    node.FOCAL.PRIOR = 0.01
    # "sigmoid" (K columns, divided by the foreground regions), or "bags" (the form of BAGS's release: a background
    # column, divided by regions x columns, scores by softmax).
    node.FOCAL.FORM = "sigmoid"

    node.SEESAW = CN()
    # Exponent of the mitigation factor (class counts).
    node.SEESAW.P = 0.8
    # Exponent of the compensation factor (mistakes).
    node.SEESAW.Q = 2.0
    # Least probability of the right class in the compensation factor.
    node.SEESAW.EPS = 0.01
    # The two columns of objectness (detection), or none (plain classification).
    node.SEESAW.BACKGROUND = True

    node.FEDERATED = CN()
    # Classes that take part in a step, at least.
    node.FEDERATED.NUM_SAMPLED_CLASSES = 50
    # Classes are drawn in proportion to their image count to this power.
    node.FEDERATED.FREQUENCY_POWER = 0.5
    # Probability of each class before training.
    node.FEDERATED.PRIOR = 0.01
    # Seed of the random draws.
    node.FEDERATED.SEED = 0

    node.DROPLOSS = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.DROPLOSS.LAMBDA = 1.76e-3
    # Choose LAMBDA from the counts, so that tail classes have about this share of the image counts (EQL: 0.09 on LVIS
    # v0.5); 0 for LAMBDA as it is.
    node.DROPLOSS.TAIL_RATIO = 0.0
    # Probability of each class before training.
    node.DROPLOSS.PRIOR = 0.001
    # Seed of the random draws.
    node.DROPLOSS.SEED = 0

    node.BALANCED_SOFTMAX = CN()
    # Strength of the adjustment tau log(instances): 1 is balanced softmax, 0 is softmax.
    node.BALANCED_SOFTMAX.TAU = 1.0
    # A background column (detection), or none (plain classification).
    node.BALANCED_SOFTMAX.BACKGROUND = True

    node.ECM = CN()
    # Background regions for each foreground region.
    node.ECM.BACKGROUND_RATIO = 6.3313
    # Probability of each column before training.
    node.ECM.PRIOR = 0.001

    node.GOL = CN()
    # What spares tail classes: "droploss" (the paper's GOL), "eql", or "none", with a background column.
    node.GOL.WEIGHTS = "droploss"
    # Frequency threshold of DropLoss and EQL: a class in less than this share of all training images is tail (strict).
    node.GOL.LAMBDA = 1.76e-3
    # Choose LAMBDA from the counts, so that tail classes have about this share of the image counts (EQL: 0.09 on LVIS
    # v0.5); 0 for LAMBDA as it is.
    node.GOL.TAIL_RATIO = 0.0
    # Probability of each column before training.
    node.GOL.PRIOR = 6.18e-4
    # Seed of DropLoss's random draws.
    node.GOL.SEED = 0

    node.IIF = CN()
    # The factor of a class's logit by its share n / N: "raw" log(N / n), "base2", "base10", "smooth", "prob", "normit"
    # or "gombit".
    node.IIF.VARIANT = "raw"
    # What n and N count: "images" or "instances".
    node.IIF.COUNTS = "images"
    # A background column (detection), or none (plain classification).
    node.IIF.BACKGROUND = True

    node.LDAM = CN()
    # Margin of the rarest class, of a cosine: the classifier is to be normed with temperature 1.
    node.LDAM.MAX_MARGIN = 0.5
    # Factor of the logits.
    node.LDAM.SCALE = 30.0
    # Iterations without weights, then classes are weighed by their effective number (DRW); -1: never.
    node.LDAM.REWEIGHT_AFTER = -1
    # Of the effective number of instances.
    node.LDAM.BETA = 0.9999
    # A background column (detection), or none (plain classification).
    node.LDAM.BACKGROUND = True

    node.LOCE = CN()
    # What an observation leaves of a class's mean score.
    node.LOCE.ALPHA = 0.9
    # Mean score of each class at first.
    node.LOCE.INITIAL_SCORE = 0.01
    # Mean score of background, which stays.
    node.LOCE.BACKGROUND_SCORE = 0.01
    # A background column (detection), or none (plain classification).
    node.LOCE.BACKGROUND = True


def add_regularizer_settings(node: CN) -> None:
    """Add ``REGULARIZER``: a term that is added to the loss in training."""
    node.REGULARIZER = CN()
    # A name in REGULARIZER_REGISTRY, or "" for none. Its settings are in the node of the same name.
    node.REGULARIZER.NAME = ""

    node.REGULARIZER.PCB = CN()
    # Share of a region's target that goes to the classes that are taken for its own.
    node.REGULARIZER.PCB.ALPHA = 0.4
    # Share of a class's row of the confusion matrix that stays in a step with regions of that class.
    node.REGULARIZER.PCB.MOMENTUM = 0.99
    # Iterations before the term is added; it also waits until each class has had a region.
    node.REGULARIZER.PCB.START = 0

    node.REGULARIZER.ROG = CN()
    # Factor of the gradient of the ranking.
    node.REGULARIZER.ROG.LAMBDA = 0.1
    # A class weighs the regions that it has had to minus this power; 0 weighs all classes alike.
    node.REGULARIZER.ROG.GAMMA = 1.0
    # Difference of two logits from which on one is above the other entirely.
    node.REGULARIZER.ROG.DELTA = 0.5


def add_region_settings(node: CN) -> None:
    """Add what LOCE and PCB do with the features of regions: ``FEATURE_MEMORY`` and ``REFINEMENT``."""
    node.FEATURE_MEMORY = CN()
    # Region features of earlier images that are kept of each class, and drawn from as further regions of each step,
    # more often of classes with a low mean score (LOCE); 80 in its release. 0 is off. They take 50 kB each.
    node.FEATURE_MEMORY.SIZE = 0
    # Classes that are drawn for a step, with replacement.
    node.FEATURE_MEMORY.DRAWS = 8
    # Features that are drawn of such a class.
    node.FEATURE_MEMORY.FEATURES = 4
    # Largest shift of a side of the 16 boxes around each object whose features are kept, in widths or heights.
    node.FEATURE_MEMORY.JITTER = 1 / 6

    node.REFINEMENT = CN()
    # Factor of the classification loss of each pass through the box head, after each of which the region features are
    # refined by what was predicted (PCB): (0.2, 0.2, 0.6) in its release. () is one pass, without refinement.
    node.REFINEMENT.LOSS_WEIGHTS = ()
    # Width of the hidden layers of the refinement.
    node.REFINEMENT.WIDTH = 512


def add_calibration_settings(node: CN) -> None:
    """Add ``CALIBRATION``: what is done to the scores of a trained classifier at test time."""
    node.CALIBRATION = CN()
    # A name in CALIBRATION_REGISTRY, or "" for none. Its settings are in the node of the same name.
    node.CALIBRATION.NAME = ""

    node.CALIBRATION.NORCAL = CN()
    # Scores of a class are divided by its image count to this power; to be tuned on held-out data, 0 is off.
    node.CALIBRATION.NORCAL.GAMMA = 0.6

    node.CALIBRATION.LOGN = CN()
    # File with the mean and standard deviation of each logit over a data set, written by eql-d2 calibrate; for a
    # cascade, the file of the first stage, with those of the others beside it.
    node.CALIBRATION.LOGN.STATISTICS = ""
    # Which statistics those are: "test" (mean and deviation over all regions that are classified at test time), or
    # "training" (running ones of the regions sampled for training, as in the release).
    node.CALIBRATION.LOGN.REGIONS = "test"
    # Share of each step in the running statistics; used with REGIONS "training" alone.
    node.CALIBRATION.LOGN.MOMENTUM = 5e-5

    node.CALIBRATION.FRACAL = CN()
    # File with the fractal dimension of each class, written by eql-d2 calibrate.
    node.CALIBRATION.FRACAL.STATISTICS = ""
    # Scores of a class are divided by its dimension to this power; to be tuned on held-out data, 0 leaves it out.
    node.CALIBRATION.FRACAL.LAMBDA = 2.0
    # What a class's share is of that is added to its logit: "images" or "instances".
    node.CALIBRATION.FRACAL.COUNTS = "images"
