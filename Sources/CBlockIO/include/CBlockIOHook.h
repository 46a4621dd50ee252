#pragma once

// Programs of the operator's, run beside the agent. Every function returns what the system call would, or a negated errno.

#include <sys/types.h>

/// Runs the program at `path` without a shell and without arguments: in a process group of its own, in the root directory,
/// with default signal actions, with `environment` (NULL at its end) and no descriptors but these: what is written to `input`
/// is its standard input, what it writes to standard output and standard error is read from `output`. Both are ours, do not
/// block, and are closed on exec.
int cblockio_spawn_hook(const char *path, char *const *environment, int *input, int *output, pid_t *child);
