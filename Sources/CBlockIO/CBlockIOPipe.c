#define _GNU_SOURCE
#include "CBlockIOPipe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_cachestat
// One number for all architectures, as of every system call since Linux 5.1.
#define SYS_cachestat 451
#endif

// As the kernel has them (cachestat(2)); older C libraries do not.
struct cache_range {
    uint64_t offset;
    uint64_t length;
};
struct cache_state {
    uint64_t pages;
    uint64_t dirty;
    uint64_t in_writeback;
    uint64_t evicted;
    uint64_t evicted_recently;
};

int64_t cblockio_pipe(int ends[2], size_t capacity) {
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) return -errno;
    // A user may have so much in pipes, and one pipe so much (pipe(7)).
    for (size_t size = capacity; size > 0; size /= 2) {
        const int value = fcntl(ends[1], F_SETPIPE_SZ, (int)size);
        if (value >= 0) return value < (int)capacity ? value : (int64_t)capacity;
        if (errno != EPERM && errno != ENOMEM) break;
    }
    const int error = errno;
    close(ends[0]);
    close(ends[1]);
    return -error;
}

bool cblockio_is_cached(int descriptor, uint64_t offset, uint64_t length) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    struct cache_range range = {offset, length};
    struct cache_state state;
    if (length == 0 || syscall(SYS_cachestat, descriptor, &range, &state, 0) != 0) return false;
    if (state.pages < (offset + length - 1) / page - offset / page + 1) return false;
    // What is on its way from the disk is counted, too; it comes in order.
    char last;
    struct iovec part = {&last, 1};
    return preadv2(descriptor, &part, 1, (off_t)(offset + length - 1), RWF_NOWAIT) == 1;
}

int64_t cblockio_fill_pipe(int pipe, int descriptor, uint64_t offset, size_t length) {
    off64_t from = (off64_t)offset;
    size_t done = 0;
    while (done < length) {
        const ssize_t count = splice(descriptor, &from, pipe, NULL, length - done, SPLICE_F_NONBLOCK);
        if (count > 0) {
            done += (size_t)count;
        } else if (count == 0 || (errno != EINTR && done > 0)) {
            break;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return (int64_t)done;
}

int64_t cblockio_send_from_pipe(int socket, int pipe, size_t length) {
    // The flags of splice(2) say nothing about the socket, and those of the socket are nothing to recvmsg(2) and sendmsg(2) with
    // flags of their own.
    const int flags = fcntl(socket, F_GETFL);
    if (flags < 0 || fcntl(socket, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
    ssize_t count;
    do {
        count = splice(pipe, NULL, socket, NULL, length, SPLICE_F_NONBLOCK);
    } while (count < 0 && errno == EINTR);
    const int64_t result = count < 0 ? -errno : count;
    if (fcntl(socket, F_SETFL, flags) < 0) return -errno;
    return result;
}

void cblockio_empty_pipe(int pipe) {
    char dropped[16 << 10];
    ssize_t count;
    do {
        count = read(pipe, dropped, sizeof dropped);
    } while (count > 0 || (count < 0 && errno == EINTR));
}
