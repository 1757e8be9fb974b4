// Says what it sees, by system calls alone, and exits with 7; "wait" waits for a signal first.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void on_term(int number) {
    while (wait(NULL) > 0) {}
    printf("term\n");
    fflush(stdout);
    _exit(9);
}
static void on_size(int number) {
    struct winsize size;
    ioctl(1, TIOCGWINSZ, &size);
    printf("size %d %d\n", size.ws_row, size.ws_col);
    fflush(stdout);
}
static void show(const char *path, const char *prefix) {
    char line[512];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, prefix, strlen(prefix))) printf("%s", line);
    if (file) fclose(file);
}
// What root of the workload can see of a process: its memory, its environment, its files.
static int spy(const char *pid) {
    const char *secret[] = {"mem", "environ", "maps", "root/.", "fd/0"};
    char path[64];
    for (int at = 0; at < 5; at++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, secret[at]);
        printf("%s %d\n", secret[at], open(path, O_RDONLY) >= 0);
    }
    printf("trace %d\n", ptrace(PTRACE_ATTACH, atoi(pid), 0, 0) == 0);
    return 0;
}
int main(int argc, char **argv, char **env) {
    char here[256];
    struct stat at;
    if (argc > 2 && !strcmp(argv[1], "spy")) return spy(argv[2]);
    signal(SIGTERM, on_term);
    printf("cwd %s\n", getcwd(here, sizeof here));
    printf("parent %d, group %d, session %d\n", getppid(), getpgid(0) == getpid(), getsid(0) == getpid());
    show("/proc/self/status", "Cap");
    show("/proc/self/status", "SigIgn");
    show("/proc/self/status", "SigBlk");
    show("/proc/self/oom_score_adj", "");
    printf("initramfs %d\n", stat("/newroot", &at) == 0 || stat("/lower", &at) == 0);
    printf("core_pattern %d\n", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    for (int at = 0; at < 4; at++) {
        const char *secret[] = {"/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/root/."};
        printf("init %d\n", open(secret[at], O_RDONLY));
    }
    if (argc > 1 && !strcmp(argv[1], "a b")) printf("init %ld\n", ptrace(PTRACE_ATTACH, 1, 0, 0));
    printf("sysfs %d\n", mkdir("/sys/x", 0755));
    for (int fd = 3; fd < 100; fd++) if (fcntl(fd, F_GETFD) != -1) printf("open %d\n", fd);
    for (int at = 1; at < argc; at++) printf("arg %s\n", argv[at]);
    for (; *env; env++) printf("env %s\n", *env);
    fflush(stdout);
    while (argc > 1 && !strcmp(argv[1], "talk")) { printf("more\n"); fflush(stdout); }
    if (argc > 1 && !strcmp(argv[1], "end init"))
        for (int number = 1; number < 32; number++)
            if (number != SIGTERM) kill(1, number);
    if (argc > 1 && !strcmp(argv[1], "end init")) sleep(1);
    if (argc > 1 && !strcmp(argv[1], "family") && fork() >= 0) for (;;) pause();
    if (argc > 1 && !strcmp(argv[1], "sizes")) on_size(signal(SIGWINCH, on_size) == SIG_ERR);
    if (argc > 1 && (!strcmp(argv[1], "wait") || !strcmp(argv[1], "sizes"))) for (;;) pause();
    return 7;
}
