"""Training. To read how BERT is fine-tuned, read in this order:

optim         AdamW: what decays, how fast each layer learns, the learning rate of each step
plan          how many steps there are, and what comes after which
replicas      the cores of a CPU, each with windows of its own
loop          the optimiser step: windows, forward, loss, backward, clip, update
distillation  the loss with teachers
ema           a moving average of the weights, to keep in place of the last ones
run           what comes between the steps; how a run begins, goes on and ends
log, evaluations, checkpoints    what it calls there
run_folder    all that a run leaves behind, file by file
data          the questions: read, checked, cut into windows and labelled
validation    what the held-out ones are for: a threshold, calibration
job           a whole training from names of model and data: what bertqa train does
provenance    what else a run depends on: versions, commit, device
"""
