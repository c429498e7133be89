"""One check for actions that come from outside: worlds never see a NaN or a number beyond their limits."""

import numpy as np


def checked_action(action, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return `action` as a float64 vector, or say which entry is wrong.

    action: array-like, shape (A,). low, high: (A,), the limits, both allowed.
    Raises ValueError with the index, the value and its limits. Nothing is clipped: a caller whose action is too
    large has the wrong convention or a broken policy, and a clipped world would hide it.
    """
    try:
        vector = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"action must be {len(low)} numbers, got {action!r}") from error
    if vector.shape != low.shape:
        raise ValueError(f"action must have shape {low.shape}, got {vector.shape}")
    wrong = ~((vector >= low) & (vector <= high))  # written so that NaN counts as wrong
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ValueError(
            f"action[{index}] = {vector[index]} is outside [{low[index]}, {high[index]}]; "
            "clip or rescale it to the limits of env.action_space"
        )
    return vector
