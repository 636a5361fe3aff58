/**
 * A hostile guest: frames that are almost right, with virtio headers that are almost right, from a packet socket on eth0.
 *
 *   node fuzz.ts OWN-MAC GATEWAY-MAC OWN-ADDRESS COUNT SEED
 *
 * Templates (ARP, DHCP, DNS, TCP, UDP, ICMP, fragments) of which some bytes are changed, cut or made longer. What the kernel itself refuses
 * (EINVAL for an impossible virtio header) is passed over.
 */
import { addressOf } from '../../src/sys/libc.ts'
import { linkIndex } from '../../src/sys/netdev.ts'
import { openPacket } from '../../src/sys/packet.ts'
import { send } from '../../src/sys/socket.ts'

const [mac = '', gateway = '', own = '', count = '0', seed = '1'] = process.argv.slice(2)
let state = Number(seed)
const random = (below: number): number => {
  state = (state + 0x6d2b79f5) | 0
  let t = Math.imul(state ^ (state >>> 15), 1 | state)
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
  return ((t ^ (t >>> 14)) >>> 0) % below
}

const VNET = 10
const macBytes = (m: string) => m.split(':').map((x) => Number.parseInt(x, 16))
const ip = (a: string) => a.split('.').map(Number)
const gate = own.replace(/\d+$/, '1')
const services = own.replace(/\d+$/, '2')
const OUTSIDE = '93.184.216.34'

function ipv4(proto: number, dst: string, payload: number[], flags = 0): number[] {
  const total = 20 + payload.length
  const h = [
    0x45,
    0,
    total >> 8,
    total & 255,
    random(256),
    random(256),
    flags >> 8,
    flags & 255,
    64,
    proto,
    0,
    0,
    ...ip(own),
    ...ip(dst),
  ]
  let sum = 0
  for (let i = 0; i < 20; i += 2) sum += ((h[i] as number) << 8) | (h[i + 1] as number)
  sum = (sum & 0xffff) + (sum >> 16)
  sum = ~((sum & 0xffff) + (sum >> 16)) & 0xffff
  h[10] = sum >> 8
  h[11] = sum & 255
  return [8, 0, ...h, ...payload]
}
const filler = (n: number) => Array.from({ length: n }, () => random(256))
const port = () => [random(256), random(256)]
const tcp = (flags: number, options: number[] = []) => [
  ...port(),
  0,
  80,
  ...filler(8),
  ((20 + options.length) / 4) << 4,
  flags,
  255,
  255,
  0,
  0,
  0,
  0,
  ...options,
  ...filler(random(200)),
]
const udp = (dst: number, body: number[]) => [
  ...port(),
  dst >> 8,
  dst & 255,
  (8 + body.length) >> 8,
  (8 + body.length) & 255,
  0,
  0,
  ...body,
]
const dns = () => [
  ...port(),
  1,
  0,
  0,
  random(3),
  0,
  random(3),
  0,
  random(3),
  0,
  random(3),
  3,
  0x61,
  0x62,
  0x63,
  0xc0,
  random(64),
  0,
  random(256),
  0,
  1,
]
const dhcp = () => [
  1,
  1,
  6,
  0,
  ...filler(4),
  ...Array(20).fill(0),
  ...macBytes(mac),
  ...Array(202).fill(0),
  99,
  130,
  83,
  99,
  53,
  1,
  1 + random(8),
  ...filler(random(60)),
]

const templates: (() => number[])[] = [
  () => [8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + random(2), ...macBytes(mac), ...ip(own), ...filler(6), ...ip(gate)],
  () => ipv4(6, OUTSIDE, tcp(2, [2, 4, 5, 180, 1, 3, 3, random(16)])),
  () => ipv4(6, OUTSIDE, tcp(random(256), filler(4 * random(10)))),
  () => ipv4(6, services, tcp(random(64))),
  () => ipv4(17, OUTSIDE, udp(7, filler(random(400)))),
  () => ipv4(17, services, udp(53, dns())),
  () => ipv4(17, '255.255.255.255', udp(67, dhcp())),
  () => ipv4(1, gate, [random(20), random(4), 0, 0, ...filler(random(300))]),
  () => ipv4(1, OUTSIDE, [3, 4, 0, 0, 0, 0, random(2), random(256), ...ipv4(6, own, filler(8)).slice(2)]),
  () => ipv4(17, OUTSIDE, filler(8 * random(100)), (random(8) << 13) | random(8192)),
  () => [0x86, 0xdd, 0x60, ...filler(random(100))],
  () => filler(random(200)),
]

const frame = new Uint8Array(new ArrayBuffer(70_000))
const at = addressOf(frame)
const fd = openPacket(linkIndex('eth0'), true)
if (fd < 0) throw new Error(`no packet socket: ${fd}`)

let sent = 0
for (let n = 0; n < Number(count); n++) {
  const body = templates[random(templates.length)]?.() ?? []
  const to = random(8) === 0 ? filler(6) : random(4) === 0 ? Array(6).fill(255) : macBytes(gateway)
  frame.fill(0, 0, VNET)
  frame.set([...to, ...macBytes(mac), ...body], VNET)
  let len = VNET + 12 + body.length
  if (random(3) === 0) {
    // linux/virtio_net.h: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
    const gso = [0, 1, 3, 4, 5][random(5)] as number
    frame.set([random(3), gso, 54, 0, random(256), random(6), 34, 0, [16, 6, 2, random(40)][random(4)] as number, 0])
    if (random(2) === 0) len = Math.min(frame.length, len + random(65_000))
  }
  for (let k = random(4); k > 0; k--) frame[VNET + 12 + random(Math.max(1, len - VNET - 12))] = random(256)
  if (random(10) === 0) len = VNET + 14 + random(Math.max(1, len - VNET - 14))
  if (send(fd, at, len) >= 0) sent++
}
console.log(sent)
