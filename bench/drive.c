// Both ends of a relay under test: the guest's NIC (a stream socket, 4-byte lengths) and the endpoint's
// UDP socket, in one thread on one core, so the relay has the other to itself.
//
//   drive out|in|rtt NIC UDP HEAD RECEIVER COUNTER COUNT BURST WINDOW SIZES
//
// HEAD is the 42 bytes of Ethernet, IPv4 and UDP headers in hexadecimal; lengths, identification and
// checksum are filled in here. RECEIVER is the session's index in the direction sent, COUNTER the first
// counter. SIZES: UDP payloads in turn, or "random". At most WINDOW messages are under way. Prints
// "seconds sent received reordered", for rtt "seconds p50 p99" in microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { HEAD = 42, LONGEST = 1472, SLOT = 4 + HEAD + LONGEST, MOST = 64 };

static int nic, udp;
static uint8_t head[HEAD];
static uint32_t receiver;
static uint64_t counter;
static int sizes[64], kinds;
static uint32_t seed = 1;
static uint64_t expected, received, reordered;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int next_size(uint64_t n)
{
	if (kinds)
		return sizes[n % kinds];
	seed = seed * 1664525u + 1013904223u;
	return 32 + (seed >> 8) % 89 * 16;
}

static void put16(uint8_t *at, unsigned value)
{
	at[0] = value >> 8;
	at[1] = value;
}

static void message(uint8_t *at, uint64_t number)
{
	uint32_t type = 4;
	memcpy(at, &type, 4);
	memcpy(at + 4, &receiver, 4);
	memcpy(at + 8, &number, 8);
}

// One record at `at`: its size in bytes.
static int record(uint8_t *at, uint64_t number, int size)
{
	uint32_t length = htonl(HEAD + size), sum = 0;
	uint8_t *ip = at + 4 + 14;
	memcpy(at, &length, 4);
	memcpy(at + 4, head, HEAD);
	put16(ip + 2, 28 + size);
	put16(ip + 4, number);
	put16(ip + 10, 0);
	put16(ip + 20 + 4, 8 + size);
	put16(ip + 20 + 6, 0);
	for (int i = 0; i < 20; i += 2)
		sum += ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	put16(ip + 10, ~((sum & 0xffff) + (sum >> 16)));
	message(at + 4 + HEAD, number);
	return 4 + HEAD + size;
}

static void saw(const uint8_t *payload)
{
	uint64_t number;
	memcpy(&number, payload + 8, 8);
	if (number != expected)
		reordered += number < expected;
	expected = number + 1;
	received++;
}

// Datagrams that are there, coalesced or not.
static void drain_udp(int flags)
{
	static uint8_t buffer[8][65536];
	static struct mmsghdr messages[8];
	static struct iovec vectors[8];
	static uint8_t control[8][64];
	for (int i = 0; i < 8; i++) {
		vectors[i] = (struct iovec){buffer[i], 65536};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1,
			.msg_control = control[i], .msg_controllen = 64};
	}
	int got = recvmmsg(udp, messages, 8, flags, NULL);
	for (int i = 0; i < got; i++) {
		int size = messages[i].msg_len;
		struct cmsghdr *c = CMSG_FIRSTHDR(&messages[i].msg_hdr);
		if (c && c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO)
			memcpy(&size, CMSG_DATA(c), 4);
		for (int at = 0; at < (int)messages[i].msg_len; at += size)
			saw(buffer[i] + at);
	}
}

// Frames that are there; only WireGuard's transport counts.
static void drain_nic(int flags)
{
	static uint8_t buffer[1 << 18];
	static int kept;
	int got = recv(nic, buffer + kept, sizeof buffer - kept, flags);
	if (got <= 0)
		return;
	kept += got;
	int at = 0;
	while (kept - at >= 4) {
		int length = buffer[at] << 24 | buffer[at + 1] << 16 | buffer[at + 2] << 8 | buffer[at + 3];
		if (kept - at < 4 + length)
			break;
		uint8_t *frame = buffer + at + 4;
		if (length >= HEAD + 32 && frame[12] == 8 && frame[13] == 0 && frame[23] == 17 && frame[HEAD] == 4)
			saw(frame + HEAD);
		at += 4 + length;
	}
	memmove(buffer, buffer + at, kept - at);
	kept -= at;
}

static void wait_for(int fd, int events, int milliseconds)
{
	struct pollfd p = {fd, events, 0};
	poll(&p, 1, milliseconds);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static int rtt(uint64_t count, uint32_t back)
{
	static uint8_t slot[SLOT], datagram[65536];
	double *took = malloc(count * sizeof *took), started = now();
	uint32_t out = receiver;
	for (uint64_t n = 0; n < count; n++) {
		double t = now();
		receiver = out;
		int size = record(slot, counter + n, next_size(n));
		if (write(nic, slot, size) != size)
			return 1;
		wait_for(udp, POLLIN, 1000);
		int got = recv(udp, datagram, sizeof datagram, MSG_DONTWAIT);
		if (got < 0)
			return fprintf(stderr, "lost on the way out\n"), 1;
		receiver = back;
		message(datagram, n);
		uint64_t before = received;
		if (send(udp, datagram, got, 0) != got)
			return 1;
		while (received == before) {
			wait_for(nic, POLLIN, 1000);
			drain_nic(MSG_DONTWAIT);
			if (now() - t > 2)
				return fprintf(stderr, "lost on the way back\n"), 1;
		}
		took[n] = (now() - t) * 1e6;
	}
	double whole = now() - started;
	qsort(took, count, sizeof *took, compare);
	printf("%.6f %.2f %.2f\n", whole, took[count / 2], took[count * 99 / 100]);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 11)
		return 2;
	int out = !strcmp(argv[1], "out"), one = 1, huge = 1 << 26;
	nic = atoi(argv[2]);
	udp = atoi(argv[3]);
	for (int i = 0; i < HEAD; i++)
		sscanf(argv[4] + 2 * i, "%2hhx", &head[i]);
	receiver = strtoul(argv[5], NULL, 0);
	counter = strtoull(argv[6], NULL, 0);
	uint64_t count = strtoull(argv[7], NULL, 0), sent = 0;
	int64_t window = atoi(argv[9]);
	int burst = atoi(argv[8]);
	if (strcmp(argv[10], "random"))
		for (char *s = strtok(argv[10], ","); s && kinds < 64; s = strtok(NULL, ","))
			sizes[kinds++] = atoi(s);
	if (setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &huge, sizeof huge))
		setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &huge, sizeof huge);
	setsockopt(udp, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
	if (!strcmp(argv[1], "rtt"))
		return rtt(count, strtoul(argv[11], NULL, 0));

	// Every byte of a message but its head is the same; heads are written anew each time.
	static uint8_t slots[MOST][SLOT];
	struct iovec vectors[MOST];
	int filled = 0, first = 0, segment = 0;
	fcntl(nic, F_SETFL, O_NONBLOCK);
	expected = counter;
	double started = now(), progress = started;
	while (received < count) {
		uint64_t before = received;
		if (out && (int64_t)(sent - received) < window) {
			while (filled < burst && sent + filled < count) {
				int size = record(slots[filled], counter + sent + filled, next_size(sent + filled));
				vectors[filled] = (struct iovec){slots[filled], size};
				filled++;
			}
			if (first < filled) {
				ssize_t wrote = writev(nic, vectors + first, filled - first);
				if (wrote < 0 && errno != EAGAIN)
					return perror("write to the NIC"), 1;
				while (wrote > 0) {
					size_t part = (size_t)wrote < vectors[first].iov_len ? (size_t)wrote : vectors[first].iov_len;
					vectors[first].iov_base = (uint8_t *)vectors[first].iov_base + part;
					vectors[first].iov_len -= part;
					wrote -= part;
					first += !vectors[first].iov_len;
				}
				if (first == filled)
					sent += filled, first = filled = 0;
			}
		} else if (!out && sent < count && (int64_t)(sent - received) + burst <= window) {
			int size = next_size(sent), many = 0;
			while (many < burst && sent + many < count) {
				message(slots[many], counter + sent + many);
				vectors[many] = (struct iovec){slots[many], size};
				many++;
			}
			if (size != segment && burst > 1) {
				setsockopt(udp, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size);
				segment = size;
			}
			if (writev(udp, vectors, many) < 0)
				return perror("send to the relay"), 1;
			sent += many;
		}
		if (out)
			drain_udp(MSG_DONTWAIT);
		else
			drain_nic(MSG_DONTWAIT);
		if (received != before)
			progress = now();
		else if (now() - progress > 0.5)
			break; // what is missing is lost
	}
	printf("%.6f %lu %lu %lu\n", progress - started, sent, received, reordered);
	return 0;
}
