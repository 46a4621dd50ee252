#pragma once

// Processes of our own program and the memory that is shared with them. Every function returns what the system call
// would, or a negated errno.

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// memfd_create(2) of `length` bytes, close-on-exec, sealed so that its size never changes: a descriptor.
int cblockio_shared_memory(size_t length);

/// socketpair(2) of connected stream sockets, close-on-exec.
int cblockio_socket_pair(int sockets[2]);
/// send(2) of what the socket takes now: a count, or -EAGAIN when that is nothing.
int64_t cblockio_send_now(int socket, const void *bytes, size_t count);
/// send(2) and recv(2) that wait; never SIGPIPE.
int64_t cblockio_send_waiting(int socket, const void *bytes, size_t count);
int64_t cblockio_receive_waiting(int socket, void *bytes, size_t count);
/// shutdown(2) of the sending direction: the other side reads the end.
int cblockio_shutdown_sending(int socket);

/// Starts a program that gets nothing of ours but `socket` as its descriptor 3, `memory` as its descriptor 4, standard
/// error and the environment; no signal is blocked in it. A pidfd (close-on-exec), and its process ID in `process`.
int cblockio_spawn(const char *path, char *const arguments[], int socket, int memory, pid_t *process);
/// pidfd_send_signal(2).
int cblockio_signal_process(int process_descriptor, int signal);
/// waitpid(2) of a child that has ended, without waiting: 1 with its exit status, or with the signal that killed it; 0 while
/// it runs.
int cblockio_reap(pid_t process, int *status, int *signal);
/// Makes this process ignore SIGTERM, SIGINT, SIGHUP, SIGPIPE and SIGXFSZ.
void cblockio_ignore_signals(void);
