#define _GNU_SOURCE
#include "CBlockIOPipe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

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
    ends[0] = ends[1] = -1;
    return -error;
}

bool cblockio_keeps_pages(int descriptor) {
    struct statfs status;
    return fstatfs(descriptor, &status) == 0 && status.f_type == EXT4_SUPER_MAGIC;
}

// Whether mincore(2) tells the truth: of files that are not the caller's it says that all is there.
static bool is_told(int descriptor) {
    const int flags = fcntl(descriptor, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY) return true;
    struct stat status;
    return geteuid() == 0 || (fstat(descriptor, &status) == 0 && status.st_uid == geteuid());
}

bool cblockio_is_cached(int descriptor, uint64_t offset, size_t length) {
    enum { most = 1024 };
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t start = offset / page * page;
    const size_t span = (size_t)(offset - start) + length;
    const size_t pages = (span + page - 1) / page;
    if (length == 0 || pages > most) return false;
    // The quickest answer first. Some file systems lock a file that is being written, too.
    char last;
    struct iovec part = {&last, 1};
    if (preadv2(descriptor, &part, 1, (off_t)(offset + length - 1), RWF_NOWAIT) != 1) return false;
    if (!is_told(descriptor)) return false;
    // What is on its way from the disk, or did not arrive, is in the cache, too, but not up to date: who read it would wait.
    void *mapping = mmap(NULL, span, PROT_READ, MAP_SHARED, descriptor, (off_t)start);
    if (mapping == MAP_FAILED) return false;
    unsigned char present[most];
    bool all = mincore(mapping, span, present) == 0;
    for (size_t i = 0; all && i < pages; i++) all = present[i] & 1;
    munmap(mapping, span);
    return all;
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
