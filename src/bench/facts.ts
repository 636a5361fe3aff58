/** What of this machine makes figures what they are: kernel, CPU, sysctls, versions of the tools. */
import { existsSync, readFileSync } from 'node:fs'
import { cpus, loadavg, release, totalmem } from 'node:os'
import type { Place } from './place.ts'
import { processor } from './processor.ts'
import { versionOf } from './stand.ts'

const KEYS = [
  'net.core.rmem_max',
  'net.core.wmem_max',
  'net.ipv4.tcp_rmem',
  'net.ipv4.tcp_wmem',
  'net.ipv4.tcp_congestion_control',
  'net.core.default_qdisc',
  'net.ipv4.tcp_tw_reuse',
  'net.ipv4.ip_local_port_range',
  'net.bridge.bridge-nf-call-iptables',
  'kernel.io_uring_disabled',
]

const installed = (argv: readonly string[], find?: RegExp): Promise<string> =>
  versionOf(argv, find).catch((e: Error) => e.message)

/** @param host a host namespace of the bench: sysctls are its own */
export async function facts(host: Place): Promise<(readonly [string, string])[]> {
  const list: (readonly [string, string])[] = [
    ['kernel', `Linux ${release()} ${process.arch}`],
    ['Node', process.version],
    ['CPU', `${cpus().length} × ${processor()}${virtual() ? ' (virtual machine)' : ''}`],
    ['memory', `${Math.round(totalmem() / 2 ** 30)} GiB`],
    [
      'load',
      loadavg()
        .map((n) => n.toFixed(2))
        .join(' '),
    ],
    ['iperf3', await installed(['iperf3', '--version'], /iperf \S+/)],
    ['dnsperf', await installed(['dnsperf', '-h'], /Version \S+/i)],
  ]
  for (const key of KEYS) {
    const path = `/proc/sys/${key.replaceAll('.', '/')}`
    const value = await host.sh(`cat ${path} 2>/dev/null || true`)
    if (value !== '') list.push([key, value.replaceAll('\t', ' ')])
  }
  return list
}

const virtual = (): boolean =>
  existsSync('/proc/cpuinfo') && / hypervisor\b/.test(readFileSync('/proc/cpuinfo', 'latin1'))
