"""Floor 4, acting: policies, observation history, evaluation, collection. Gets a gymnasium env, never names one."""
