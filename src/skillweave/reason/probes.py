def probe_inputs(inputs, count, seed):
    return tuple([inputs[i % len(inputs)], i] for i in range(count))
