"""Records the kinds of forward passes in a step, to detect a step without noise and to name the cause."""


class StepWatch:
    """What happened since the optimisation step began. Forward passes only write it: a compiled graph that read it
    would be compiled again at every step.

    noised: an embedding got noise.
    ran_in_evaluation: a forward pass in evaluation mode, with gradients.
    ran_without_gradients: a forward pass in training mode, without gradients.
    looked_up_outside: the embedding was called outside of every forward pass that has our hooks.
    """

    def __init__(self) -> None:
        self.ever_noised = False
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.noised = False
        self.ran_in_evaluation = False
        self.ran_without_gradients = False
        self.looked_up_outside = False

    def note_noise(self) -> None:
        self.noised = True
        self.ever_noised = True

    def cause(self, model: str) -> str:
        """Return the visible cause of a step without noise, and the remedy."""
        if self.ran_in_evaluation:
            return (
                f"{model} was called in evaluation mode, in which there is no noise (from_pretrained returns models in "
                f"it). Call model.train() before the training"
            )
        if self.ran_without_gradients:
            return (
                f"{model} was called only without gradients (torch.no_grad), in which there is no noise. If the "
                "gradients are computed by hand, as in gradient caching, wrap the forward passes of a step in "
                "`with handle.training_forwards():`"
            )
        if self.looked_up_outside:
            return (
                f"the embedding was looked up, but {model} itself was not called: model.forward(...) skips hooks. Call "
                "model(...), or install the noise in the module that is called"
            )
        return (
            f"{model} was not called in this process. Install the noise in the model that is trained, in the process "
            "that trains it, or leave neftune_noise_alpha out if nothing is trained"
        )
