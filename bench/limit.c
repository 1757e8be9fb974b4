// The least a relay must do, in C: what Python is measured against. `limit NIC UDP`
//
// Out: one read, each frame's headers compared with the link's, payloads of one size sent as segments.
// In: recvmmsg with coalescing, one gather write a batch. No WireGuard, no sessions, no evidence.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { HEAD = 42, GROUPS = 16, SEGMENTS = 64, BYTES = 65000, PIECES = 1024 };

static const uint8_t link_out[HEAD] = {
	0x02, 0x77, 0x67, 0, 0, 1, 0x02, 0x77, 0x67, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0,
	192, 168, 64, 2, 192, 168, 64, 1, 0xca, 0x6c, 0xca, 0x6c, 0, 0, 0, 0,
};
static uint8_t headers[1473][4 + HEAD];
static int nic, udp, segment;

static unsigned sum(const uint8_t *ip)
{
	unsigned total = 0;
	for (int i = 0; i < 20; i += 2)
		total += ip[i] << 8 | ip[i + 1];
	total = (total & 0xffff) + (total >> 16);
	return (total & 0xffff) + (total >> 16);
}

static void lay_out(void)
{
	for (int size = 0; size <= 1472; size++) {
		uint8_t *h = headers[size], *ip = h + 4 + 14;
		h[2] = (HEAD + size) >> 8, h[3] = HEAD + size;
		memcpy(h + 4, link_out, HEAD);
		memcpy(h + 4, link_out + 6, 6), memcpy(h + 10, link_out, 6);
		memcpy(ip + 12, link_out + 30, 4), memcpy(ip + 16, link_out + 26, 4);
		ip[2] = (28 + size) >> 8, ip[3] = 28 + size, ip[6] = 0x40;
		ip[24] = (8 + size) >> 8, ip[25] = 8 + size;
		unsigned s = ~sum(ip);
		ip[10] = s >> 8, ip[11] = s;
	}
}

static int good(const uint8_t *f, int length)
{
	return length >= HEAD && !memcmp(f, link_out, 15) && !memcmp(f + 26, link_out + 26, 12) && f[23] == 17 &&
	       f[22] && !((f[20] << 8 | f[21]) & ~0x4000) && (f[16] << 8 | f[17]) == length - 14 &&
	       (f[38] << 8 | f[39]) == length - 34 && sum(f + 14) == 0xffff;
}

static void flush(struct iovec *v, int count)
{
	if (!count)
		return;
	int size = v[0].iov_len;
	if (count > 1 ? size != segment : size > segment && segment) {
		segment = count > 1 ? size : 0;
		setsockopt(udp, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
	}
	if (writev(udp, v, count) < 0)
		perror("send");
}

static void out(void)
{
	static uint8_t buffer[1 << 18];
	static int kept;
	struct iovec v[SEGMENTS];
	int count = 0, at = 0;
	int got = recv(nic, buffer + kept, sizeof buffer - kept, MSG_DONTWAIT);
	if (!got || (got < 0 && errno != EAGAIN))
		exit(0);
	if (got > 0)
		kept += got;
	while (kept - at >= 4) {
		int length = buffer[at + 2] << 8 | buffer[at + 3];
		if (kept - at < 4 + length)
			break;
		if (!good(buffer + at + 4, length))
			exit(1);
		struct iovec p = {buffer + at + 4 + HEAD, length - HEAD};
		if (count && (p.iov_len > v[0].iov_len || v[count - 1].iov_len != v[0].iov_len || count == SEGMENTS ||
			      (count + 1) * v[0].iov_len > BYTES))
			flush(v, count), count = 0;
		v[count++] = p;
		at += 4 + length;
	}
	flush(v, count);
	memmove(buffer, buffer + at, kept - at);
	kept -= at;
}

static void put(struct iovec *v, int count)
{
	while (count) {
		ssize_t wrote = writev(nic, v, count);
		if (wrote < 0)
			exit(0);
		while (count && wrote >= (ssize_t)v->iov_len)
			wrote -= v->iov_len, v++, count--;
		if (count)
			v->iov_base = (uint8_t *)v->iov_base + wrote, v->iov_len -= wrote;
	}
}

static void in(void)
{
	static uint8_t buffer[GROUPS][65536], control[GROUPS][64];
	static struct mmsghdr m[GROUPS];
	static struct iovec w[GROUPS], v[PIECES];
	int pieces = 0;
	for (int i = 0; i < GROUPS; i++) {
		w[i] = (struct iovec){buffer[i], 65536};
		m[i].msg_hdr = (struct msghdr){.msg_iov = &w[i], .msg_iovlen = 1, .msg_control = control[i], .msg_controllen = 64};
	}
	int got = recvmmsg(udp, m, GROUPS, MSG_DONTWAIT, NULL);
	for (int i = 0; i < got; i++) {
		int length = m[i].msg_len, size = length;
		struct cmsghdr *c = CMSG_FIRSTHDR(&m[i].msg_hdr);
		if (c && c->cmsg_type == UDP_GRO)
			memcpy(&size, CMSG_DATA(c), 4);
		for (int at = 0; at < length; at += size) {
			int this = length - at < size ? length - at : size;
			if (pieces == PIECES)
				put(v, pieces), pieces = 0;
			v[pieces++] = (struct iovec){headers[this], 4 + HEAD};
			v[pieces++] = (struct iovec){buffer[i] + at, this};
		}
	}
	put(v, pieces);
}

int main(int argc, char **argv)
{
	int one = 1, big = 4 << 20;
	if (argc < 3)
		return 2;
	nic = atoi(argv[1]), udp = atoi(argv[2]);
	lay_out();
	setsockopt(udp, IPPROTO_UDP, UDP_GRO, &one, sizeof one);
	setsockopt(udp, SOL_SOCKET, SO_RCVBUF, &big, sizeof big);
	struct pollfd p[2] = {{nic, POLLIN, 0}, {udp, POLLIN, 0}};
	for (;;) {
		poll(p, 2, -1);
		if (p[0].revents)
			out();
		if (p[1].revents)
			in();
	}
}
