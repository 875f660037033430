"""researchmm/TracKit e351e5b, lib/core/function.py 9-80: ocean_train calls model.train() first (23), freezing or not."""


def ocean_train(train_loader, model, optimizer, epoch, cur_lr, cfg, writer_dict, logger, device):
    model.train()
    for batch in train_loader:
        template, search, label, reg_label, reg_weight = (t.to(device) for t in batch)
        cls_loss, _, reg_loss = model(template, search, label, reg_target=reg_label, reg_weight=reg_weight)
        loss = cls_loss + reg_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        writer_dict["writer"].add_scalar("train_loss", loss.item(), writer_dict["train_global_steps"])
    return model, writer_dict
