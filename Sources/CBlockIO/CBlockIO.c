#define _GNU_SOURCE
#include "CBlockIO.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int result(int value) { return value < 0 ? -errno : value; }

int cblockio_open(const char *path, int flags, unsigned mode) {
    int descriptor;
    do {
        descriptor = open(path, flags | O_CLOEXEC, (mode_t)mode);
    } while (descriptor < 0 && errno == EINTR);
    return result(descriptor);
}

int cblockio_close(int descriptor) {
    // Linux releases the descriptor even when a signal interrupts close: never close twice.
    int value = close(descriptor);
    return value < 0 && errno == EINTR ? 0 : result(value);
}

int cblockio_vacate(int descriptor, int *is_taken) {
    int inert = open("/", O_PATH | O_CLOEXEC), copy = inert < 0 ? -1 : fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    *is_taken = 0;
    if (copy < 0) {
        if (inert >= 0) close(inert);
        return cblockio_close(descriptor);
    }
    // dup3 does not tell what became of the file that it closes: a copy is closed before, and tells.
    int value = cblockio_close(copy);
    *is_taken = dup3(inert, descriptor, O_CLOEXEC) >= 0;
    close(inert);
    if (*is_taken) return value;
    int last = cblockio_close(descriptor);
    return value ? value : last;
}

int cblockio_stat(int descriptor, struct stat *status) { return result(fstat(descriptor, status)); }

int cblockio_direct_alignment(int descriptor, uint32_t *offset, uint32_t *memory) {
#ifdef STATX_DIOALIGN
    struct statx status;
    if (statx(descriptor, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 && status.stx_mask & STATX_DIOALIGN) {
        *offset = status.stx_dio_offset_align;
        *memory = status.stx_dio_mem_align;
        return *offset > 0 && *memory > 0 ? 0 : -EOPNOTSUPP;
    }
#endif
    // Of block devices Linux says it so from 6.11 on only.
    int sector = 0;
    if (ioctl(descriptor, BLKSSZGET, &sector) != 0 || sector <= 0) return -ENODATA;
    *offset = *memory = (uint32_t)sector;
    return 0;
}

unsigned cblockio_sector_size(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return 0;
    dev_t device = S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev;
    // A partition has the queue of its disk, one level up.
    static const char *const places[] = {"queue", "../queue"};
    unsigned size = 0;
    for (size_t i = 0; size == 0 && i < sizeof places / sizeof places[0]; i++) {
        char path[96];
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s/logical_block_size", major(device), minor(device), places[i]);
        FILE *file = fopen(path, "re");
        if (file == NULL) continue;
        if (fscanf(file, "%u", &size) != 1) size = 0;
        fclose(file);
    }
    return size;
}

int cblockio_read_without_ahead(int descriptor) {
    return -posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM);
}

int cblockio_open_direct(int descriptor) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return cblockio_open(path, O_RDWR | O_DIRECT, 0);
}

int cblockio_go_direct(int descriptor) {
    int flags = fcntl(descriptor, F_GETFL);
    return result(flags < 0 ? -1 : fcntl(descriptor, F_SETFL, flags | O_DIRECT));
}

uint64_t cblockio_birth_time(int descriptor) {
    struct statx status;
    if (statx(descriptor, "", AT_EMPTY_PATH, STATX_BTIME, &status) != 0) return 0;
    if (!(status.stx_mask & STATX_BTIME)) return 0;
    return (uint64_t)status.stx_btime.tv_sec * 1000000000 + status.stx_btime.tv_nsec;
}

uint64_t cblockio_wall_clock(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool cblockio_has_times_of_host(int descriptor) {
    struct statfs status;
    if (fstatfs(descriptor, &status) != 0) return false;
    switch ((unsigned long)status.f_type) {
    case OVERLAYFS_SUPER_MAGIC:
    case 0x2fc12fc1: return true; // ZFS
    default: return cblockio_is_local(descriptor);
    }
}

bool cblockio_is_local(int descriptor) {
    struct statfs status;
    if (fstatfs(descriptor, &status) != 0) return false;
    switch ((unsigned long)status.f_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case F2FS_SUPER_MAGIC: return true;
    default: return false;
    }
}

int cblockio_flags(int descriptor) { return result(fcntl(descriptor, F_GETFL)); }

int cblockio_set_flags(int descriptor, int flags) {
    if (fcntl(descriptor, F_SETFL, flags) < 0) return -errno;
    return result(fcntl(descriptor, F_SETFD, FD_CLOEXEC));
}

int cblockio_truncate(int descriptor, uint64_t size) {
    int value;
    do {
        value = ftruncate(descriptor, (off_t)size);
    } while (value < 0 && errno == EINTR);
    return result(value);
}

int cblockio_block_device_size(int descriptor, uint64_t *size) {
    return result(ioctl(descriptor, BLKGETSIZE64, size));
}

int cblockio_loop_backing(int descriptor, uint64_t *device, uint64_t *inode) {
    struct loop_info64 info;
    memset(&info, 0, sizeof info);
    if (ioctl(descriptor, LOOP_GET_STATUS64, &info) < 0) return -errno;
    *device = info.lo_device;
    *inode = info.lo_inode;
    return 0;
}

int64_t cblockio_seek_data(int descriptor, uint64_t offset) {
    off_t value = lseek(descriptor, (off_t)offset, SEEK_DATA);
    return value < 0 ? -errno : value;
}

int64_t cblockio_seek_hole(int descriptor, uint64_t offset) {
    off_t value = lseek(descriptor, (off_t)offset, SEEK_HOLE);
    return value < 0 ? -errno : value;
}

int64_t cblockio_pread(int descriptor, void *bytes, size_t count, uint64_t offset) {
    ssize_t value;
    do {
        value = pread(descriptor, bytes, count, (off_t)offset);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

// glibc's own calls of these let the thread be cancelled, which nobody does: four atomic operations a request.
_Static_assert(sizeof(long) == 8, "an offset is one word of a system call");

int64_t cblockio_pwrite(int descriptor, const void *bytes, size_t count, uint64_t offset) {
    ssize_t value;
    do {
        value = syscall(SYS_pwrite64, descriptor, bytes, count, (off_t)offset);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int64_t cblockio_pread_cached(int descriptor, void *bytes, size_t count, uint64_t offset) {
    struct iovec part = {.iov_base = bytes, .iov_len = count};
    ssize_t value;
    do {
        value = syscall(SYS_preadv2, descriptor, &part, 1L, (off_t)offset, 0L, (long)RWF_NOWAIT);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int cblockio_sync(int descriptor, bool data_only) {
    // Not repeated after EINTR: an error report must not be lost between two attempts; Linux does not interrupt it.
    return result(data_only ? fdatasync(descriptor) : fsync(descriptor));
}

int cblockio_fallocate(int descriptor, int mode, uint64_t offset, uint64_t length) {
    int value;
    do {
        value = fallocate(descriptor, mode, (off_t)offset, (off_t)length);
    } while (value < 0 && errno == EINTR);
    return result(value);
}

int cblockio_sync_file_range(int descriptor, uint64_t offset, uint64_t length, unsigned flags) {
    return result(sync_file_range(descriptor, (off_t)offset, (off_t)length, flags));
}

int cblockio_clone_range(int descriptor, int source, uint64_t offset, uint64_t length) {
    struct file_clone_range range = {
        .src_fd = source, .src_offset = offset, .src_length = length, .dest_offset = offset};
    return result(ioctl(descriptor, FICLONERANGE, &range));
}

int64_t cblockio_extents_end(int descriptor, uint64_t offset, uint64_t length, uint32_t count) {
    struct fiemap *map = calloc(1, sizeof *map + count * sizeof map->fm_extents[0]);
    if (map == NULL) return -ENOMEM;
    map->fm_start = offset;
    map->fm_length = length;
    map->fm_extent_count = count;
    int64_t end = result(ioctl(descriptor, FS_IOC_FIEMAP, map));
    if (end == 0) {
        end = (int64_t)(offset + length);
        if (count > 0 && map->fm_mapped_extents == count) {
            const struct fiemap_extent *last = &map->fm_extents[count - 1];
            const int64_t last_end = (int64_t)(last->fe_logical + last->fe_length);
            if (last_end < end) end = last_end;
        }
    }
    free(map);
    return end;
}

const int cblockio_zero_range = FALLOC_FL_ZERO_RANGE;
const int cblockio_punch_hole = FALLOC_FL_PUNCH_HOLE;
const int cblockio_keep_size = FALLOC_FL_KEEP_SIZE;
int64_t cblockio_unwritten_pages(int descriptor, uint64_t offset, uint64_t length) {
    // The kernel's interface; glibc has no names for it yet.
    const long cachestat_number = 451;
    struct { uint64_t offset, length; } range = {offset, length};
    struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } pages;
    if (syscall(cachestat_number, descriptor, &range, &pages, 0) != 0) return -errno;
    return (int64_t)(pages.dirty + pages.writeback);
}

const unsigned cblockio_range_start_write = SYNC_FILE_RANGE_WRITE;
const unsigned cblockio_range_write_and_wait =
    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
const unsigned cblockio_range_wait = SYNC_FILE_RANGE_WAIT_BEFORE;

static struct flock one_byte(short type, uint64_t byte) {
    // l_pid stays 0, as open file description locks demand.
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = (off_t)byte;
    lock.l_len = 1;
    return lock;
}

int cblockio_lock_shared(int descriptor, uint64_t byte) {
    struct flock lock = one_byte(F_RDLCK, byte);
    return result(fcntl(descriptor, F_OFD_SETLK, &lock));
}

int cblockio_unlock(int descriptor, uint64_t byte) {
    struct flock lock = one_byte(F_UNLCK, byte);
    return result(fcntl(descriptor, F_OFD_SETLK, &lock));
}

int cblockio_is_locked(int descriptor, uint64_t byte) {
    struct flock lock = one_byte(F_WRLCK, byte);
    if (fcntl(descriptor, F_OFD_GETLK, &lock) < 0) return -errno;
    return lock.l_type != F_UNLCK;
}

_Thread_local uintptr_t cblockio_owner;

void cblockio_block_pipe_signal(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

void cblockio_name_thread(const char *name) {
    char text[16];
    strncpy(text, name, sizeof text - 1);
    text[sizeof text - 1] = 0;
    pthread_setname_np(pthread_self(), text);
}

uint64_t cblockio_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t cblockio_waits(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? (uint64_t)usage.ru_nvcsw : 0;
}

// Vectorised also where the rest of the program is built for debugging.
bool cblockio_is_zero(const void *bytes, size_t count) {
    typedef uint64_t vector __attribute__((vector_size(32), aligned(1), may_alias));
    enum { step = 4096 };
    const unsigned char *at = bytes;
    while (count >= step) {
        const vector *v = (const vector *)at;
        vector a = v[0], b = v[1], c = v[2], d = v[3];
        // Data shows itself at the start, mostly: then the rest of it need not be fetched.
        vector first = a | b;
        if (first[0] | first[1] | first[2] | first[3]) return false;
        for (size_t i = 4; i < step / sizeof(vector); i += 4) {
            a |= v[i];
            b |= v[i + 1];
            c |= v[i + 2];
            d |= v[i + 3];
        }
        a |= b | c | d;
        if (a[0] | a[1] | a[2] | a[3]) return false;
        at += step;
        count -= step;
    }
    while (count >= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        if (word) return false;
        at += 8;
        count -= 8;
    }
    while (count > 0) {
        if (*at) return false;
        at += 1;
        count -= 1;
    }
    return true;
}
