"""Fine-tuning of BERT, in reading order:

optim         AdamW: weight decay, learning rate schedule, learning rate of each layer
plan          number of steps, and when to log, evaluate and save
shares        data parallelism over the cores of a CPU
loop          the optimizer step: windows, forward, loss, backward, gradient clipping, update
distillation  the loss with teachers
ema           exponential moving average of the weights
run           a run from start to end: logging, evaluation and checkpoints between the steps
log, evaluations, checkpoints    called by run
run_folder    the files that a run writes
data          reading, checking, windowing and labelling of the questions
validation    threshold and calibration from the held-out questions
job           a complete training from names of model and data, as in bertqa train
provenance    versions, commit and device of a run
"""
