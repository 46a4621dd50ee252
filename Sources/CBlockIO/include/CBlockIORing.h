#pragma once

// What RingEngine needs of liburing, which is mostly inline functions and macros.

#include <stddef.h>
#include <stdint.h>

struct io_uring;
struct msghdr;

enum cblockio_operation {
    CBLOCKIO_READ,
    CBLOCKIO_WRITE,
    CBLOCKIO_FSYNC,
    CBLOCKIO_FDATASYNC,
    CBLOCKIO_FALLOCATE,
    CBLOCKIO_SYNC_FILE_RANGE,
    /// Receives into memory; with `flags` 1 tries to fill all of it before it completes.
    CBLOCKIO_RECEIVE,
    /// Sends what an array of `length` iovecs at `address` names; never raises SIGPIPE.
    CBLOCKIO_SEND,
    /// Completes when one of the events of poll(2) in `flags` is there, or the descriptor has ended.
    CBLOCKIO_POLL,
    /// Reads an eventfd's counter and drops it.
    CBLOCKIO_WAKE,
};

struct cblockio_request {
    enum cblockio_operation operation;
    int descriptor;
    /// Memory for READ, WRITE and RECEIVE, iovecs for SEND.
    void *address;
    /// Memory for the kernel's view of a SEND, which lasts as long as the request.
    struct msghdr *message;
    uint64_t offset;
    uint64_t length;
    /// fallocate's mode, sync_file_range's flags, RECEIVE's, POLL's events.
    unsigned flags;
    /// Comes back with the completion.
    uint64_t token;
};

struct cblockio_completion {
    uint64_t token;
    int32_t result;
};

/// Makes a ring that some thread must start before it uses it, alone. Tries the faster modes first. 0 or a negated
/// errno (-ENOSYS, -EPERM, -EACCES where the system refuses io_uring).
int cblockio_ring_make(struct io_uring **ring, unsigned entries, unsigned completions);
/// Makes the calling thread the ring's only user.
int cblockio_ring_start(struct io_uring *ring);
/// Keeps a file open until all requests of the ring have ended, also those that outlive the process; 0 or a negated errno. Once.
int cblockio_ring_hold(struct io_uring *ring, int descriptor);
void cblockio_ring_free(struct io_uring *ring);
/// The number of completions that fit.
unsigned cblockio_ring_capacity(const struct io_uring *ring);
/// Queues a request; 0 when the submission queue is full: submit and try again.
int cblockio_ring_prepare(struct io_uring *ring, const struct cblockio_request *request);
/// Submits what was prepared and lets the kernel post completions; with `wait` not before there is one. A negated errno
/// or a number that is not.
int cblockio_ring_submit(struct io_uring *ring, int wait);
/// Submits what was prepared and waits for a completion, but no longer than so many nanoseconds, fewer than 10^9, or not at
/// all where the kernel is too old; as above, and -ETIME when none came.
int cblockio_ring_doze(struct io_uring *ring, uint64_t nanoseconds);
/// Looks, awake, for a completion or for the kernel's word that there is work which may bring one: 1 as soon as there is,
/// 0 after so many nanoseconds. What was prepared must have been submitted.
int cblockio_ring_watch(const struct io_uring *ring, uint64_t nanoseconds);
/// Takes up to `count` completions.
unsigned cblockio_ring_reap(struct io_uring *ring, struct cblockio_completion *completions, unsigned count);

/// An eventfd, close-on-exec; a descriptor or a negated errno.
int cblockio_eventfd(void);
void cblockio_eventfd_signal(int descriptor);
