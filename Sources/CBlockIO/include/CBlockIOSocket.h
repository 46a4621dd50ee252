#pragma once

// Stream sockets, and waiting for them. Every function returns what the system call would, or a negated errno; none
// waits except cblockio_epoll_wait, and none raises SIGPIPE.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The C library's; not included, so that Swift sees one module's.
struct iovec;

/// accept4(2) with SOCK_CLOEXEC. The listener is non-blocking; what is accepted is not.
int cblockio_accept(int listener);
int64_t cblockio_receive(int socket, void *bytes, size_t count);
int64_t cblockio_send(int socket, struct iovec *parts, size_t count);
/// How many bytes have arrived at a stream socket that nobody has received; a negated errno where it does not say.
int cblockio_unreceived(int socket);
/// How much memory what was sent takes until the peer has received it, in bytes, of a Unix socket; a negated errno where
/// it does not say.
int cblockio_unfetched(int socket);
/// shutdown(2) of both directions: whoever waits for the socket is told.
int cblockio_shutdown(int socket);
/// socket(2) for listening: close-on-exec and non-blocking.
int cblockio_listening_socket(int family);
int cblockio_set_option(int socket, int level, int name, int value);
/// connect(2) of a Unix socket without waiting.
int cblockio_answers(const char *path);

/// An epoll instance, close-on-exec.
int cblockio_epoll(void);
/// Asks for one event of a descriptor: that it can be read from, written to, or either. It replaces what was asked before.
int cblockio_epoll_watch(int epoll, int descriptor, bool reads, bool writes);

struct cblockio_event {
    int descriptor;
    bool reads;
    bool writes;
    /// Both directions have ended.
    bool ended;
};

/// Waits for events and takes up to `count`. An end or an error counts as both directions.
int cblockio_epoll_wait(int epoll, struct cblockio_event *events, int count);
