#define _GNU_SOURCE
#include "CBlockIOMapping.h"

#include <errno.h>
#include <stdint.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static int result_of(int result) { return result < 0 ? -errno : result; }

int cblockio_open_mapping(const char *path, int exclusive) {
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | (exclusive ? O_CREAT | O_EXCL : 0);
    int descriptor;
    do {
        descriptor = open(path, flags, 0600);
    } while (descriptor < 0 && errno == EINTR);
    return result_of(descriptor);
}

int cblockio_map(int descriptor, size_t length, void **address) {
    void *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (start == MAP_FAILED) return -errno;
    *address = start;
    return 0;
}

int cblockio_map_aligned(int descriptor, size_t length, size_t alignment, void **address) {
    char *room = mmap(NULL, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return -errno;
    size_t before = (alignment - (uintptr_t)room % alignment) % alignment;
    void *start = mmap(room + before, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor, 0);
    if (start == MAP_FAILED) {
        int error = -errno;
        munmap(room, length + alignment);
        return error;
    }
    // The bytes behind the last page of the mapping are part of it.
    size_t page = (size_t)sysconf(_SC_PAGESIZE), end = before + (length + page - 1) / page * page;
    if (before > 0) munmap(room, before);
    if (length + alignment > end) munmap(room + end, length + alignment - end);
    *address = start;
    return 0;
}

int cblockio_use_large_page(void *address, size_t length) {
    // Only where something is there is anything made larger. Nothing is stored: somebody may be using it by now.
    (void)*(volatile const char *)address;
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
    return result_of(madvise(address, length, MADV_COLLAPSE));
}

int cblockio_unmap(void *address, size_t length) { return result_of(munmap(address, length)); }

int cblockio_unlink(const char *path) { return result_of(unlink(path)); }

void cblockio_store_release(void *address, uint64_t value) {
    __atomic_store_n((uint64_t *)address, value, __ATOMIC_RELEASE);
}

uint64_t cblockio_load_acquire(const void *address) {
    return __atomic_load_n((const uint64_t *)address, __ATOMIC_ACQUIRE);
}
