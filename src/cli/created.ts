/** What a person is told when a VM is up: its address, its ports, and what to type next. */
import type { Network, Vm } from '../api/contract.ts'
import { addresses, both, port, reach } from './text.ts'

export function runningText(vm: Vm, network: Network | undefined): string {
  const lines = [
    `${vm.name} is running at ${both(addresses(vm, ['no address']))} on the network ${vm.network} (${vm.backend})`,
  ]
  for (const p of vm.ports) lines.push(`  port ${port(p)}`)
  for (const w of network?.warnings ?? []) lines.push(`  note: ${w}`)
  lines.push('', 'Next:', `  noid exec ${vm.name}`, `  noid exec ${vm.name} -- ip addr show`)
  const web = vm.ports.map(reach).find((r) => r.startsWith('curl'))
  if (web !== undefined) lines.push(`  ${web}`)
  if (network?.addressing === 'noid' && !network.hostReach && !network.isolated && vm.ports.length === 0) {
    lines.push(
      `  noid port add ${vm.name} 8080:80     (this machine has no interface on ${network.name}: reach the VM by a port)`,
    )
  }
  return lines.join('\n')
}
