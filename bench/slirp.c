// libslirp, QEMU's `-netdev user`, on a stream socket: `slirp NIC FRAME`, a first frame of the guest's in
// hexadecimal, for it to learn the guest's MAC from. Built without its headers, which the
// runtime package lacks; the declarations are those of its public interface, version 1.
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <arpa/inet.h>

typedef struct Slirp Slirp;
typedef int (*AddPoll)(int fd, int events, void *opaque);
typedef int (*GetEvents)(int index, void *opaque);

struct config {
	uint32_t version;
	int restricted;
	bool in_enabled;
	struct in_addr network, mask, host;
	bool in6_enabled;
	struct in6_addr prefix6;
	uint8_t prefix6_length;
	struct in6_addr host6;
	const char *hostname, *tftp_name, *tftp_path, *bootfile;
	struct in_addr dhcp_start, nameserver;
	struct in6_addr nameserver6;
	const char **dns_search, *domain;
	size_t mtu, mru;
	bool no_loopback, emulate;
};

struct callbacks {
	ssize_t (*send_packet)(const void *, size_t, void *);
	void (*guest_error)(const char *, void *);
	int64_t (*clock)(void *);
	void *(*timer_new)(void (*)(void *), void *, void *);
	void (*timer_free)(void *, void *);
	void (*timer_mod)(void *, int64_t, void *);
	void (*add_fd)(int, void *);
	void (*remove_fd)(int, void *);
	void (*notify)(void *);
};

Slirp *slirp_new(const struct config *, const struct callbacks *, void *);
void slirp_input(Slirp *, const uint8_t *, int);
void slirp_pollfds_fill(Slirp *, uint32_t *, AddPoll, void *);
void slirp_pollfds_poll(Slirp *, int, GetEvents, void *);

enum { IN = 1, OUT = 2, PRI = 4, ERR = 8, HUP = 16 }; // SLIRP_POLL_*

static int nic;
static struct pollfd fds[64];
static int used;

static ssize_t send_packet(const void *frame, size_t length, void *opaque)
{
	uint32_t prefix = htonl(length);
	struct iovec v[2] = {{&prefix, 4}, {(void *)frame, length}};
	(void)opaque;
	if (writev(nic, v, 2) != (ssize_t)length + 4)
		exit(0);
	return length;
}
static void error(const char *what, void *o) { (void)o; fprintf(stderr, "%s\n", what); }
static int64_t clock_ns(void *o)
{
	struct timespec t;
	(void)o;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}
static void *timer_new(void (*f)(void *), void *a, void *o) { (void)f; (void)a; (void)o; return calloc(1, 8); }
static void timer_free(void *t, void *o) { (void)o; free(t); }
static void timer_mod(void *t, int64_t at, void *o) { (void)t; (void)at; (void)o; }
static void fd_changed(int fd, void *o) { (void)fd; (void)o; }
static void notify(void *o) { (void)o; }

static int add_poll(int fd, int events, void *o)
{
	(void)o;
	fds[used] = (struct pollfd){fd, (events & IN ? POLLIN : 0) | (events & OUT ? POLLOUT : 0) | (events & PRI ? POLLPRI : 0), 0};
	return used++;
}
static int get_events(int index, void *o)
{
	int r = fds[index].revents;
	(void)o;
	return (r & POLLIN ? IN : 0) | (r & POLLOUT ? OUT : 0) | (r & POLLPRI ? PRI : 0) | (r & POLLERR ? ERR : 0) | (r & POLLHUP ? HUP : 0);
}

int main(int argc, char **argv)
{
	static uint8_t buffer[1 << 18];
	static const struct callbacks calls = {send_packet, error, clock_ns, timer_new, timer_free, timer_mod, fd_changed, fd_changed, notify};
	struct config c = {.version = 1, .in_enabled = true, .mtu = 1500, .mru = 1500};
	int kept = 0;
	if (argc < 3)
		return 2;
	nic = atoi(argv[1]);
	inet_aton("192.168.64.0", &c.network);
	inet_aton("255.255.255.0", &c.mask);
	inet_aton("192.168.64.1", &c.host);
	inet_aton("192.168.64.15", &c.dhcp_start);
	inet_aton("192.168.64.3", &c.nameserver);
	Slirp *slirp = slirp_new(&c, &calls, NULL);
	int length = 0;
	for (const char *hex = argv[2]; sscanf(hex, "%2hhx", &buffer[length]) == 1; hex += 2)
		length++;
	slirp_input(slirp, buffer, length);
	for (;;) {
		uint32_t timeout = 1000;
		fds[0] = (struct pollfd){nic, POLLIN, 0};
		used = 1;
		slirp_pollfds_fill(slirp, &timeout, add_poll, NULL);
		int got = poll(fds, used, timeout);
		slirp_pollfds_poll(slirp, got < 0, get_events, NULL);
		if (!fds[0].revents)
			continue;
		got = recv(nic, buffer + kept, sizeof buffer - kept, 0);
		if (got <= 0)
			return 0;
		kept += got;
		int at = 0;
		while (kept - at >= 4) {
			int length = buffer[at + 2] << 8 | buffer[at + 3];
			if (kept - at < 4 + length)
				break;
			slirp_input(slirp, buffer + at + 4, length);
			at += 4 + length;
		}
		memmove(buffer, buffer + at, kept - at);
		kept -= at;
	}
}
