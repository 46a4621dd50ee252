#define _GNU_SOURCE
#include "CBlockIORing.h"

#include "CBlockIO.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int cblockio_ring_make(struct io_uring **result, unsigned entries, unsigned completions) {
    // SINGLE_ISSUER since Linux 6.0, DEFER_TASKRUN since 6.1, COOP_TASKRUN and TASKRUN_FLAG since 5.19.
    static const unsigned modes[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    struct io_uring *ring = calloc(1, sizeof *ring);
    if (ring == NULL) return -ENOMEM;
    int error = 0;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        struct io_uring_params parameters;
        memset(&parameters, 0, sizeof parameters);
        // Disabled until the thread that will use it enables it: that one becomes the single issuer.
        parameters.flags = modes[i] | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE;
        parameters.cq_entries = completions;
        error = io_uring_queue_init_params(entries, ring, &parameters);
        if (error != -EINVAL) break;
    }
    if (error != 0) {
        free(ring);
        return error;
    }
    io_uring_ring_dontfork(ring);
    *result = ring;
    return 0;
}

int cblockio_ring_start(struct io_uring *ring) {
    // liburing 2.3 has io_uring_enable_rings in its header and not in Debian's library.
    int value = (int)syscall(
        __NR_io_uring_register, ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    return value < 0 ? -errno : 0;
}

int cblockio_ring_hold(struct io_uring *ring, int descriptor) {
    return io_uring_register_files(ring, &descriptor, 1);
}

void cblockio_ring_free(struct io_uring *ring) {
    io_uring_queue_exit(ring);
    free(ring);
}

unsigned cblockio_ring_capacity(const struct io_uring *ring) { return ring->cq.ring_entries; }

// A request's 32-bit length, a multiple of the page size as the kernel's own limit is. Longer ones come back short.
static unsigned clamped(uint64_t length) { return length > 0x7ffff000 ? 0x7ffff000 : (unsigned)length; }

int cblockio_ring_prepare(struct io_uring *ring, const struct cblockio_request *request) {
    // Whatever the kernel writes here nobody reads; being static it outlives every ring.
    static uint64_t sink;
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    if (sqe == NULL) return 0;
    const int descriptor = request->descriptor;
    switch (request->operation) {
    case CBLOCKIO_READ:
        io_uring_prep_read(sqe, descriptor, request->address, clamped(request->length), request->offset);
        break;
    case CBLOCKIO_WRITE:
        io_uring_prep_write(sqe, descriptor, request->address, clamped(request->length), request->offset);
        break;
    case CBLOCKIO_FSYNC: io_uring_prep_fsync(sqe, descriptor, 0); break;
    case CBLOCKIO_FDATASYNC: io_uring_prep_fsync(sqe, descriptor, IORING_FSYNC_DATASYNC); break;
    case CBLOCKIO_FALLOCATE:
        io_uring_prep_fallocate(
            sqe, descriptor, (int)request->flags, (off_t)request->offset, (off_t)request->length);
        break;
    case CBLOCKIO_SYNC_FILE_RANGE:
        io_uring_prep_sync_file_range(
            sqe, descriptor, clamped(request->length), request->offset, (int)request->flags);
        break;
    case CBLOCKIO_RECEIVE:
        io_uring_prep_recv(
            sqe, descriptor, request->address, clamped(request->length), request->flags ? MSG_WAITALL : 0);
        break;
    case CBLOCKIO_SEND:
        memset(request->message, 0, sizeof *request->message);
        request->message->msg_iov = request->address;
        request->message->msg_iovlen = request->length;
        // Comes back short when the socket is full, so that whoever sends much sees a slow reader move.
        io_uring_prep_sendmsg(sqe, descriptor, request->message, MSG_NOSIGNAL);
        break;
    case CBLOCKIO_POLL: io_uring_prep_poll_add(sqe, descriptor, request->flags); break;
    case CBLOCKIO_WAKE: io_uring_prep_read(sqe, descriptor, &sink, sizeof sink, 0); break;
    }
    io_uring_sqe_set_data64(sqe, request->token);
    return 1;
}

int cblockio_ring_submit(struct io_uring *ring, int wait) {
    return wait ? io_uring_submit_and_wait(ring, 1) : io_uring_submit_and_get_events(ring);
}

int cblockio_ring_doze(struct io_uring *ring, uint64_t nanoseconds) {
    // Whoever submits and waits in one call may wait twice.
    const int submitted = io_uring_sq_ready(ring) ? io_uring_submit(ring) : 0;
    if (submitted < 0) return submitted;
    // Older kernels are asked by a request of its own, whose completion would pass for a wake-up.
    if (!(ring->features & IORING_FEAT_EXT_ARG)) return cblockio_ring_submit(ring, 0);
    struct __kernel_timespec limit = {.tv_nsec = (long long)nanoseconds};
    struct io_uring_cqe *cqe;
    return io_uring_wait_cqes(ring, &cqe, 1, &limit, NULL);
}

int cblockio_ring_watch(const struct io_uring *ring, uint64_t nanoseconds) {
    const uint64_t end = cblockio_now() + nanoseconds;
    do {
        // Looking costs no system call; a pause leaves the core's other thread its share.
        for (int i = 0; i < 16; i++) {
            if (io_uring_cq_ready(ring)) return 1;
            if (IO_URING_READ_ONCE(*ring->sq.kflags) & IORING_SQ_TASKRUN) return 1;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (cblockio_now() < end);
    return 0;
}

unsigned cblockio_ring_reap(struct io_uring *ring, struct cblockio_completion *completions, unsigned count) {
    unsigned head, taken = 0;
    struct io_uring_cqe *cqe;
    io_uring_for_each_cqe(ring, head, cqe) {
        if (taken == count) break;
        completions[taken].token = cqe->user_data;
        completions[taken].result = cqe->res;
        taken += 1;
    }
    io_uring_cq_advance(ring, taken);
    return taken;
}

int cblockio_eventfd(void) {
    int descriptor = eventfd(0, EFD_CLOEXEC);
    return descriptor < 0 ? -errno : descriptor;
}

void cblockio_eventfd_signal(int descriptor) {
    uint64_t one = 1;
    // It can only fail when the counter is full, and then the reader wakes anyway.
    while (write(descriptor, &one, sizeof one) < 0 && errno == EINTR) {}
}
