/**
 * A DHCP server for one client, for tests: `dhcp-answerer.ts LINK SETTINGS`. Prints a line when it listens.
 *
 * SETTINGS (JSON): address, leaseTime, nak (how many requests to refuse), silent (how many messages to ignore), options.
 * It works on a packet socket, so that its namespace needs no address.
 */
import { decode, encode } from '#dhcp-packet'
import { buildFrame, parseFrame } from '../../src/runtimes/dhcp-client/frame.ts'
import { Link } from '../../src/runtimes/dhcp-client/link.ts'

const SERVER = '192.168.77.2'
const SERVER_PORT = 67
const CLIENT_PORT = 68
const settings = {
  address: '192.168.77.100',
  leaseTime: 3600,
  nak: 0,
  silent: 0,
  options: {},
  ...JSON.parse(process.argv[3]!),
}
const link = new Link(process.argv[2]!)
console.log('listening')

/** The frame module speaks for a client: swap the ports to read a client's frame, or to write a server's. */
function swapPorts(f: Buffer): Buffer {
  const b = Buffer.from(f)
  const udp = 14 + (b[14]! & 15) * 4
  const [from, to] = [b.readUInt16BE(udp), b.readUInt16BE(udp + 2)]
  b.writeUInt16BE(to, udp)
  b.writeUInt16BE(from, udp + 2)
  return b
}

for (;;) {
  const frame = link.receive(1000)
  if (frame === undefined || frame.length < 42 || frame.readUInt16BE(36) !== SERVER_PORT) continue
  if (frame.readUInt16BE(34) !== CLIENT_PORT) continue
  const d = parseFrame(swapPorts(frame))
  if (d === undefined || settings.silent-- > 0) continue
  const p = decode(d.payload)
  const refused = p.options.messageType === 'REQUEST' && settings.nak-- > 0
  const granted = {
    leaseTime: settings.leaseTime,
    subnetMask: '255.255.255.0',
    routers: ['192.168.77.1'],
    dnsServers: [SERVER],
    searchDomains: ['noid.internal'],
    ...settings.options,
  }
  const answer = encode({
    op: 'reply',
    xid: p.xid,
    chaddr: p.chaddr,
    yiaddr: refused ? '0.0.0.0' : settings.address,
    options: {
      messageType: p.options.messageType === 'DISCOVER' ? 'OFFER' : refused ? 'NAK' : 'ACK',
      serverId: SERVER,
      ...(refused ? {} : granted),
    },
  })
  const to = { sourceMac: link.mac, targetMac: d.sourceMac, source: SERVER, target: settings.address }
  link.send(swapPorts(buildFrame(to, answer)))
}
