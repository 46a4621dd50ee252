#define _GNU_SOURCE
#include "CBlockIOProcess.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int result(int value) { return value < 0 ? -errno : value; }

int cblockio_shared_memory(size_t length) {
    int descriptor = memfd_create("drive-backup buffers", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (descriptor < 0) return -errno;
    if (ftruncate(descriptor, (off_t)length) < 0
        || fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int failure = -errno;
        close(descriptor);
        return failure;
    }
    return descriptor;
}

int cblockio_socket_pair(int sockets[2]) {
    return result(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
}

static int64_t send_with(int socket, const void *bytes, size_t count, int flags) {
    ssize_t value;
    do {
        value = send(socket, bytes, count, flags | MSG_NOSIGNAL);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int64_t cblockio_send_now(int socket, const void *bytes, size_t count) {
    return send_with(socket, bytes, count, MSG_DONTWAIT);
}

int64_t cblockio_send_waiting(int socket, const void *bytes, size_t count) {
    return send_with(socket, bytes, count, 0);
}

int64_t cblockio_receive_waiting(int socket, void *bytes, size_t count) {
    ssize_t value;
    do {
        value = recv(socket, bytes, count, 0);
    } while (value < 0 && errno == EINTR);
    return value < 0 ? -errno : value;
}

int cblockio_shutdown_sending(int socket) { return result(shutdown(socket, SHUT_WR)); }

static int prepare(posix_spawn_file_actions_t *actions, int socket, int memory) {
    int failure = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    if (!failure) failure = posix_spawn_file_actions_addopen(actions, 1, "/dev/null", O_WRONLY, 0);
    if (!failure) failure = posix_spawn_file_actions_adddup2(actions, socket, 3);
    if (!failure) failure = posix_spawn_file_actions_adddup2(actions, memory, 4);
    if (!failure) failure = posix_spawn_file_actions_addclosefrom_np(actions, 5);
    return failure;
}

static int spawn(const char *path, char *const arguments[], int socket, int memory, pid_t *process) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int failure = posix_spawn_file_actions_init(&actions);
    if (failure) return failure;
    failure = posix_spawnattr_init(&attributes);
    if (failure) {
        posix_spawn_file_actions_destroy(&actions);
        return failure;
    }
    sigset_t none;
    sigemptyset(&none);
    failure = posix_spawnattr_setsigmask(&attributes, &none);
    if (!failure) failure = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    if (!failure) failure = prepare(&actions, socket, memory);
    if (!failure) failure = posix_spawn(process, path, &actions, &attributes, arguments, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failure;
}

int cblockio_spawn(const char *path, char *const arguments[], int socket, int memory, pid_t *process) {
    // Out of the way of the numbers that they get in the child.
    int own_socket = fcntl(socket, F_DUPFD_CLOEXEC, 10);
    if (own_socket < 0) return -errno;
    int own_memory = fcntl(memory, F_DUPFD_CLOEXEC, 10);
    if (own_memory < 0) {
        int failure = -errno;
        close(own_socket);
        return failure;
    }
    int failure = spawn(path, arguments, own_socket, own_memory, process);
    close(own_socket);
    close(own_memory);
    if (failure) return -failure;
    int descriptor = (int)syscall(SYS_pidfd_open, *process, 0);
    if (descriptor >= 0) return descriptor;
    failure = -errno;
    // Nobody could watch it.
    kill(*process, SIGKILL);
    while (waitpid(*process, NULL, 0) < 0 && errno == EINTR) {}
    return failure;
}

int cblockio_signal_process(int process_descriptor, int signal) {
    return result((int)syscall(SYS_pidfd_send_signal, process_descriptor, signal, NULL, 0));
}

int cblockio_reap(pid_t process, int *status, int *signal) {
    int value = 0;
    pid_t found;
    do {
        found = waitpid(process, &value, WNOHANG);
    } while (found < 0 && errno == EINTR);
    if (found < 0) return -errno;
    if (found == 0) return 0;
    *status = WIFEXITED(value) ? WEXITSTATUS(value) : 0;
    *signal = WIFSIGNALED(value) ? WTERMSIG(value) : 0;
    return 1;
}

void cblockio_ignore_signals(void) {
    const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGXFSZ};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
}
