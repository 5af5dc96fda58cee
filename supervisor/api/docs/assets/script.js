"use strict";

// Served, the examples show the address by which this page was reached; saved to a file, the one that the server gave.
if (location.protocol.startsWith("http")) {
  for (const url of document.querySelectorAll(".url")) url.textContent = location.origin;
}

const operations = [...document.querySelectorAll(".operation")].map((section) => ({
  section,
  item: document.querySelector(`nav a[href="#${section.id}"]`).parentElement,
  text: section.querySelector("h3").textContent.toLowerCase() + section.querySelector(".summary").textContent.toLowerCase(),
}));
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const { section, item, text } of operations) section.hidden = item.hidden = !text.includes(wanted);
});

if (navigator.clipboard) {
  for (const example of document.querySelectorAll(".example")) {
    const button = example.querySelector("button");
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(example.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}
